"""Collectives in compiled XLA programs, on texts whose bytes are known by hand."""

from dataclasses import replace

import pytest

from tools.xla import hlo
from tools.xla.count import Collective, Cost, ProgramCost, count

ROW = "f32[1024,1024]{1,0:T(8,128)}"
MB4 = 4 * 2**20


def counted(text: str):
    return count(hlo.parse(f"HloModule test, is_scheduled=true\n\n{text}"))


COLLECTIVES = """
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p: f32[1024,128]) -> f32[64,128] {
  %p = WHOLE parameter(0)
  %all = WHOLE all-reduce(%p), replica_groups=[1,16]<=[16], to_apply=%sum
  %id = u32[] partition-id()
  ROOT %mine = PART dynamic-slice(%all, %id, %id), dynamic_slice_sizes={64,128}
}

ENTRY %main (x: f32[64,128], y: f32[1024,128]) -> (f32[1024,128], f32[64,128], f32[1024,128]) {
  %x = PART parameter(0)
  %y = WHOLE parameter(1)
  %start = (PART, WHOLE) all-gather-start(%x), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %gathered = WHOLE all-gather-done(%start)
  %scattered = PART fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  %summed = WHOLE all-reduce(%y), replica_groups={{0,1},{2,3}}, to_apply=%sum
  ROOT %all = (WHOLE, PART, WHOLE) tuple(%gathered, %scattered, %summed)
}
"""


def test_collectives_are_listed_with_the_bytes_of_a_chip():
    lies = "{1,0:T(8,128)}"
    found = counted(COLLECTIVES.replace("WHOLE", f"f32[1024,128]{lies}").replace("PART", f"f32[64,128]{lies}"))
    part, whole = 64 * 128 * 4, 1024 * 128 * 4
    rows = {row["kind"]: row for row in found.collectives()}
    assert set(rows) == {"all-gather", "reduce-scatter", "all-reduce"}
    sizes = {kind: (row["group"], row["count"], row["operand"], row["result"]) for kind, row in rows.items()}
    assert sizes["all-gather"] == (8, 1, part, whole)
    assert sizes["reduce-scatter"][:3] == (16, 1, whole)
    assert sizes["all-reduce"] == (2, 1, whole, whole)
    received = {cost.collective.kind: cost.collective.received for cost in found.costs if cost.collective}
    assert received == {"all-gather": whole * 7 / 8, "reduce-scatter": whole * 15 / 16, "all-reduce": whole}


def test_a_collective_in_a_loop_counts_once_a_trip():
    exchange = Cost("c", "all-reduce", "", times=3, collective=Collective("all-reduce", 10.0, 20.0, 16))
    (row,) = ProgramCost([exchange, replace(exchange, times=1)]).collectives()
    sums = {name: row[name] for name in ("count", "operand", "result", "largest")}
    assert sums == {"count": 4, "operand": 40.0, "result": 80.0, "largest": 10.0}


CHAIN = """
%start (p: bf16[128,16]) -> (bf16[128,16], bf16[128,128], u32[]) {
  %p = PART parameter(0)
  %g = WHOLE all-gather(%p), replica_groups={{0,1,2,3,4,5,6,7}}, frontend_attributes={chain_id="0"}
  ROOT %s = (PART, WHOLE, u32[]{:S(2)}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%compute (p: bf16[128,16], w: bf16[128,128], flag: u32[], x: f32[1024,1024]) -> (f32[1024,1024], bf16[128,16]) {
  %p = PART parameter(0)
  %w = WHOLE parameter(1)
  %flag = u32[]{:S(2)} parameter(2)
  %x = ROW parameter(3)
  %g = WHOLE all-gather(%p), replica_groups={{0,1,2,3,4,5,6,7}}, frontend_attributes={chain_id="0"}
  %y = ROW negate(%x)
  ROOT %t = (ROW, PART, WHOLE, WHOLE, u32[]{:S(2)}) tuple(%y, %p, %w, %g, %flag)
}

%done (p: bf16[128,16], w: bf16[128,128], flag: u32[]) -> bf16[128,128] {
  %p = PART parameter(0)
  %w = WHOLE parameter(1)
  %flag = u32[]{:S(2)} parameter(2)
  %g = WHOLE all-gather(%p), replica_groups={{0,1,2,3,4,5,6,7}}, frontend_attributes={chain_id="0"}
  ROOT %d = WHOLE custom-call(%p, %w, %g, %flag), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p: bf16[128,16], x: f32[1024,1024]) -> bf16[128,128] {
  %p = PART parameter(0)
  %x = ROW parameter(1)
  %s = (PART, WHOLE, u32[]{:S(2)}) fusion(%p), kind=kCustom, calls=%start
  %p1 = PART get-tuple-element(%s), index=0
  %w1 = WHOLE get-tuple-element(%s), index=1
  %f1 = u32[]{:S(2)} get-tuple-element(%s), index=2
  %c = (ROW, PART, WHOLE, WHOLE, u32[]{:S(2)}) fusion(%p1, %w1, %f1, %x), kind=kOutput, calls=%compute
  %p2 = PART get-tuple-element(%c), index=1
  %w2 = WHOLE get-tuple-element(%c), index=2
  %f2 = u32[]{:S(2)} get-tuple-element(%c), index=4
  ROOT %r = WHOLE fusion(%p2, %w2, %f2), kind=kCustom, calls=%done
}
"""


def test_a_collective_that_is_spread_over_fusions_is_counted_once():
    lies = "{1,0:T(8,128)(2,1)}"
    text = CHAIN.replace("PART", f"bf16[128,16]{lies}").replace("WHOLE", f"bf16[128,128]{lies}").replace("ROW", ROW)
    found = counted(text)
    (row,) = found.collectives()
    assert (row["kind"], row["count"], row["group"], row["operand"]) == ("all-gather", 1, 8, 128 * 16 * 2)
    # A part of 16 columns lies in tiles of 128.
    assert [(cost.read, cost.written) for cost in found.costs] == [(2**15, 2**15), (MB4, MB4)]


@pytest.mark.parametrize(
    "groups, size",
    [
        ("replica_groups={{0,2},{1,3}}", 2),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_1','axis_2'}", 8),
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(1)2}", 2),
        ("replica_groups={}", 8),
        ("channel_id=1", 8),
    ],
)
def test_how_many_devices_take_part(groups, size):
    header, text = "HloModule test, num_partitions=8", COLLECTIVES.replace("replica_groups={{0,1},{2,3}}", groups)
    found = count(hlo.parse(f"{header}\n\n{text.replace('WHOLE', 'f32[1024,128]').replace('PART', 'f32[64,128]')}"))
    assert next(row["group"] for row in found.collectives() if row["kind"] == "all-reduce") == size
