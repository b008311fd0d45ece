"""The accounting of compiled XLA programs, on texts whose bytes and FLOPs are known by hand."""

import importlib.util
import subprocess
import sys

import pytest

from tools.xla import hlo
from tools.xla.count import count
from tools.xla.flops import product_flops

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
    assert hlo.single_array(program.computations["main"].shape_of("x")).stored == stored


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
    estimated = counted(KERNEL.replace("CONFIG", estimate))
    # FLOPs are those of products.
    assert (estimated.bytes, estimated.flops) == (1000, 0)
    assert estimated.costs[0].note == "cost estimate; operands and results are 8.4 MB"
    large = estimate.replace("1000", str(2 * MB4))
    prefetched = KERNEL.replace("CONFIG", large).replace(f"%x = {ROW}", f"%x = {IN_VMEM}")
    assert (counted(prefetched).costs[0].read, counted(prefetched).costs[0].written) == (0, MB4)


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
from tools.plan import topology
topology.compile_only()
import jax, jax.numpy as jnp
from tools.xla import hlo
from tools.xla.count import count
device = topology.abstract_devices(topology.topology("v5e:2x2"))[0]
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
