"""The accounting of compiled XLA programs, on texts whose bytes and FLOPs are known by hand."""

import importlib.util
import subprocess
import sys

import pytest

from tools import hlo
from tools.hlo_count import count
from tools.hlo_flops import product_flops

ROW = "f32[1024,1024]{1,0:T(8,128)}"
IN_VMEM = "f32[1024,1024]{1,0:T(8,128)S(1)}"
MB4 = 4 * 2**20
LAYERS = "f32[12,1024,1024]{2,1,0:T(8,128)}"


def counted(text: str):
    return count(hlo.parse(f"HloModule test, is_scheduled=true\n\n{text}"))


def test_what_lies_in_vmem_is_not_traffic():
    """A prefetch reads HBM, the fusion then only writes it; the copy's second half costs nothing."""
    found = counted(f"""
%add (a: f32[1024,1024], b: f32[1024,1024]) -> f32[1024,1024] {{
  %a = {IN_VMEM} parameter(0)
  %b = {ROW} parameter(1)
  ROOT %sum = {ROW} add(%a, %b)
}}

ENTRY %main (x: f32[1024,1024], y: f32[1024,1024]) -> f32[1024,1024] {{
  %x = {ROW} parameter(0)
  %y = {ROW} parameter(1)
  %copy-start = ({IN_VMEM}, {ROW}, u32[]{{:S(2)}}) copy-start(%x)
  %copy-done = {IN_VMEM} copy-done(%copy-start)
  ROOT %fusion = {ROW} fusion(%copy-done, %y), kind=kLoop, calls=%add, metadata={{op_name="jit(f)/add"}}
}}
""")
    prefetch, fusion = found.costs
    assert (prefetch.opcode, prefetch.read, prefetch.written) == ("copy", MB4, 0)
    assert (fusion.op_name, fusion.read, fusion.written) == ("jit(f)/add", MB4, MB4)


@pytest.mark.parametrize(
    "shape, stored",
    [
        ("f32[4096,2]{1,0:T(8,128)}", 4096 * 128 * 4),
        ("f32[4096,2]{0,1:T(2,128)}", 4096 * 2 * 4),
        ("bf16[3,5,130]{2,1,0:T(8,128)(2,1)}", 3 * 8 * 256 * 2),
        ("s32[16]{0:T(128)S(1)}", 128 * 4),
        ("pred[7]", 7),
        ("f32[]{:T(128)}", 4),
        ("s4[10,10]", 50),
    ],
)
def test_whole_tiles_are_moved(shape, stored):
    text = f"ENTRY %main (x: f32[]) -> f32[] {{\n  ROOT %x = {shape} parameter(0)\n}}\n"
    program = hlo.parse(text)
    assert hlo.array(program.computations["main"].shape_of("x")).stored == stored


LOOP = f"""
%slice_and_update (all: f32[12,1024,1024], out: f32[12,1024,1024], i: s32[]) -> f32[12,1024,1024] {{
  %all = {LAYERS} parameter(0)
  %out = {LAYERS} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %one = f32[1,1024,1024]{{2,1,0:T(8,128)}} dynamic-slice(%all, %i, %zero, %zero), dynamic_slice_sizes={{1,1024,1024}}
  %twice = f32[1,1024,1024]{{2,1,0:T(8,128)}} add(%one, %one)
  ROOT %new = {LAYERS} dynamic-update-slice(%out, %twice, %i, %zero, %zero)
}}

%body (state: (s32[], f32[12,1024,1024], f32[12,1024,1024])) -> (s32[], f32[12,1024,1024], f32[12,1024,1024]) {{
  %state = (s32[]{{:S(6)}}, {LAYERS}, /*index=2*/{LAYERS}) parameter(0)
  %i = s32[]{{:S(6)}} get-tuple-element(%state), index=0
  %all = {LAYERS} get-tuple-element(%state), index=1
  %out = {LAYERS} get-tuple-element(%state), index=2
  %one = s32[] constant(1)
  %next = s32[]{{:S(6)}} add(%i, %one)
  %fusion = {LAYERS} fusion(%all, %out, %i), kind=kLoop, calls=%slice_and_update, backend_config=ALIAS
  ROOT %tuple = (s32[]{{:S(6)}}, {LAYERS}, {LAYERS}) tuple(%next, %all, %fusion)
}}

%condition (state: (s32[], f32[12,1024,1024], f32[12,1024,1024])) -> pred[] {{
  %state = (s32[]{{:S(6)}}, {LAYERS}, {LAYERS}) parameter(0)
  %i = s32[]{{:S(6)}} get-tuple-element(%state), index=0
  %end = s32[] constant(12)
  ROOT %less = pred[]{{:S(6)}} compare(%i, %end), direction=LT
}}

ENTRY %main (x: f32[12,1024,1024], y: f32[12,1024,1024]) -> f32[12,1024,1024] {{
  %x = {LAYERS} parameter(0)
  %y = {LAYERS} parameter(1)
  %start = s32[]{{:S(6)}} constant(START)
  %tuple = (s32[]{{:S(6)}}, {LAYERS}, {LAYERS}) tuple(%start, %x, %y)
  %while = (s32[]{{:S(6)}}, {LAYERS}, {LAYERS}) while(%tuple), condition=%condition, body=%body
  ROOT %result = {LAYERS} get-tuple-element(%while), index=2
}}
"""
IN_PLACE = '{"aliasing_operands":{"lists":[{"indices":["1","3"]}]}}'


@pytest.mark.parametrize("start, trips", [(0, 12), (3, 9), (12, 0)])
def test_a_loop_counts_by_its_trips_and_slices_by_their_size(start, trips):
    found = counted(LOOP.replace("START", str(start)).replace("ALIAS", IN_PLACE))
    cost = next(cost for cost in found.costs if cost.name == "fusion")
    assert (cost.times, cost.read, cost.written) == (trips, MB4, MB4)
    # The constant 1 that the counter is advanced by lies in HBM.
    assert found.bytes - trips * 2 * MB4 == trips * 4
    assert not found.uncertain


def test_an_update_that_is_not_in_place_copies_the_array():
    found = counted(LOOP.replace("START", "0").replace("ALIAS", '{"aliasing_operands":{"lists":[]}}'))
    cost = next(cost for cost in found.costs if cost.name == "fusion")
    assert (cost.read, cost.written) == (13 * MB4, 12 * MB4)


def test_the_compilers_own_trip_count_is_taken():
    text = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}').replace("START", "0")
    assert next(cost for cost in counted(text).costs if cost.name == "fusion").times == 7


def test_a_loop_of_unknown_length_is_reported():
    found = counted(LOOP.replace("START)", "0), metadata={}").replace("s32[] constant(12)", "s32[] partition-id()"))
    assert "how often the loop runs is not known" in found.uncertain[0]


def test_the_dearest_branch_of_a_conditional_is_counted():
    found = counted(f"""
%cheap (x: f32[1024,1024]) -> f32[1024,1024] {{
  ROOT %x = {ROW} parameter(0)
}}

%dear (x: f32[1024,1024]) -> f32[1024,1024] {{
  %x = {ROW} parameter(0)
  ROOT %negate = {ROW} negate(%x)
}}

ENTRY %main (p: s32[], x: f32[1024,1024]) -> f32[1024,1024] {{
  %p = s32[] parameter(0)
  %x = {ROW} parameter(1)
  ROOT %either = {ROW} conditional(%p, %x, %x), branch_computations={{%cheap, %dear}}
}}
""")
    assert found.bytes == 2 * MB4
    assert "one of 2 branches" in found.uncertain[0]


def test_a_gather_reads_rows_and_a_scatter_changes_rows():
    found = counted("""
ENTRY %main (table: f32[50257,128], rows: s32[64,1], new: f32[64,128]) -> f32[50257,128] {
  %table = f32[50257,128]{1,0:T(8,128)} parameter(0)
  %rows = s32[64,1]{1,0:S(1)} parameter(1)
  %new = f32[64,128]{1,0:T(8,128)} parameter(2)
  %taken = f32[64,128]{1,0:T(8,128)} gather(%table, %rows), offset_dims={1}, slice_sizes={1,128}
  ROOT %put = f32[50257,128]{1,0:T(8,128)} scatter(%table, %rows, %new), to_apply=%add
}
""")
    rows = 64 * 128 * 4
    assert [(cost.read, cost.written) for cost in found.costs] == [(rows, rows), (2 * rows, rows)]


KERNEL = f"""
ENTRY %main (x: f32[1024,1024]) -> f32[1024,1024] {{
  %x = {ROW} parameter(0)
  ROOT %twice = {ROW} custom-call(%x), custom_call_target="tpu_custom_call", backend_config=CONFIG
}}
"""


def test_a_pallas_kernel_moves_its_operands_or_what_its_estimate_says():
    plain = counted(KERNEL.replace("CONFIG", '{"custom_call_config":{"body":"(%not)an(operand"}}'))
    assert (plain.costs[0].read, plain.costs[0].written, plain.costs[0].note) == (MB4, MB4, "operands and results")
    estimate = '{"custom_call_config":{"cost_estimate":{"flops":"10","bytes_accessed":"1000"}}}'
    told = counted(KERNEL.replace("CONFIG", estimate))
    # FLOPs are those of products.
    assert (told.bytes, told.flops) == (1000, 0)
    assert told.costs[0].note == "cost estimate; operands and results are 8.4 MB"
    large = estimate.replace("1000", str(2 * MB4))
    prefetched = KERNEL.replace("CONFIG", large).replace(f"%x = {ROW}", f"%x = {IN_VMEM}")
    assert (counted(prefetched).costs[0].read, counted(prefetched).costs[0].written) == (0, MB4)


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


def _product(left: str, right: str, result: str, opcode: str, attributes: str):
    program = hlo.parse(f"""
ENTRY %main (a: {left}, b: {right}) -> {result} {{
  %a = {left} parameter(0)
  %b = {right} parameter(1)
  ROOT %y = {result} {opcode}(%a, %b), {attributes}
}}
""")
    computation = program.computations["main"]
    return product_flops(computation, computation.instructions["y"])


def test_flops_of_products_and_the_bfloat16_products_each_is_made_of():
    plain = 2 * 64 * 128 * 256
    dot = "lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    assert _product("f32[64,128]", "f32[128,256]", "f32[64,256]", "dot", dot) == (plain, plain)
    highest = f"{dot}, operand_precision={{highest,highest}}"
    assert _product("f32[64,128]", "f32[128,256]", "f32[64,256]", "dot", highest) == (plain, 6 * plain)
    assert _product("bf16[64,128]", "f32[128,256]", "f32[64,256]", "dot", highest) == (plain, 3 * plain)
    assert _product("bf16[64,128]", "bf16[128,256]", "f32[64,256]", "dot", highest) == (plain, plain)


def test_flops_of_a_convolution_leave_out_its_padding():
    """A TPU makes products as convolutions: a batch is a window that meets one element at each place."""
    plain = 2 * 64 * 128 * 256
    assert _product("f32[64,128]", "f32[128,256]", "f32[64,256]", "convolution", "dim_labels=bf_io->bf")[0] == plain
    batched = "window={size=8 stride=7 pad=0_0 lhs_dilate=8}, dim_labels=0bf_0io->0bf"
    assert _product("f32[8,64,128]", "f32[8,128,256]", "f32[8,64,256]", "convolution", batched)[0] == 8 * plain
    windowed = "window={size=2}, dim_labels=b0f_0io->bf0"
    assert _product("f32[64,2,128]", "f32[2,128,256]", "f32[64,256,1]", "convolution", windowed)[0] == 2 * plain
    padded = "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f"
    assert _product("f32[1,5,4]", "f32[3,4,4]", "f32[1,5,4]", "convolution", padded)[0] == 2 * 4 * 4 * (3 * 5 - 2)


@pytest.mark.parametrize("text, named", [("", "no ENTRY"), ("ENTRY %m () -> f32[] {\n  nonsense\n}\n", "nonsense")])
def test_what_is_no_program_is_refused(text, named):
    with pytest.raises(ValueError, match=named):
        hlo.parse(text)


COMPILED = """
from tools import topology
topology.without_hardware()
import jax, jax.numpy as jnp
from tools import hlo
from tools.hlo_count import count
device = topology.described(topology.topology("v5e:2x2"))[0]
place = jax.sharding.SingleDeviceSharding(device)
def compiled(f, *shapes):
    like = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place) for shape in shapes]
    return count(hlo.parse(jax.jit(f).lower(*like).compile().as_text()))
big = (16384, 1024)
found = compiled(lambda x, y: x + y, big, big)
assert found.bytes == 3 * 2**26, found.bytes
found = compiled(lambda w, x: jax.lax.scan(lambda x, _: (jnp.dot(x, w, precision="highest"), None), x, length=5)[0],
                 (1024, 1024), big)
assert found.flops == 5 * 2 * 2**34, found.flops
assert found.total(lambda cost: cost.passes) == 6 * found.flops
assert found.bytes >= 2 * 2**26 and not found.uncertain, (found.bytes, found.uncertain)
found = compiled(lambda x, i: jax.lax.dynamic_slice_in_dim(x, i.astype(int)[0], 1024) + 1, big, (1,))
assert 2 * 2**22 <= found.bytes <= 2 * 2**22 + 2**16, found.bytes
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU's compiler, libtpu, is not installed")
def test_programs_of_the_compiler_are_counted_as_by_hand():
    ran = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
