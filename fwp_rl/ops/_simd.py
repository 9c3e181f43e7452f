# mypy: allow-untyped-defs, allow-incomplete-defs

"""SIMD values for numba: a `Tile` is a few numbers in vector registers, with the operations that the kernels need.

Compilers do not reliably find vectors in loops over arrays that may overlap; here they are explicit, and LLVM maps
them to whatever registers the machine has. Every operation is one intrinsic; addresses are plain integers.

The cache of numba watches the file of a kernel, not this one: after a change here, touch the kernels.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model


class Tile(types.Type):
    """`width` numbers of type `dtype` in SIMD registers."""

    def __init__(self, dtype: types.Float, width: int) -> None:
        super().__init__(name=f"Tile({dtype}, {width})")
        self.dtype, self.width = dtype, width


@register_model(Tile)
class TileModel(models.PrimitiveModel):
    def __init__(self, manager, tile):
        element = ir.FloatType() if tile.dtype == types.float32 else ir.DoubleType()
        super().__init__(manager, tile, ir.VectorType(element, tile.width))


def _pointer(context, builder, address, pointee):
    return builder.inttoptr(address, context.get_value_type(pointee).as_pointer())


def _shuffle(builder, x, y, lanes):
    lanes = list(lanes)
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


def _splat(builder, number, vector):
    undefined = ir.Constant(vector, ir.Undefined)
    lane = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return _shuffle(builder, lane, undefined, [0] * vector.count)


def _fmuladd(builder, tile):
    kind, element = ("f32", ir.FloatType()) if tile.dtype == types.float32 else ("f64", ir.DoubleType())
    vector = ir.VectorType(element, tile.width)
    name = f"llvm.fmuladd.v{tile.width}{kind}"
    return builder.module.declare_intrinsic(name, fnty=ir.FunctionType(vector, [vector] * 3))


@intrinsic(prefer_literal=True)
def zeros(typing, number, width):
    """A tile of zeros with the type of `number`."""
    tile = Tile(number, width.literal_value)

    def generate(context, builder, signature, args):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(number, width), generate


@intrinsic
def load(typing, like, address):
    """The tile (or number) at `address`, of the type of `like`."""

    def generate(context, builder, signature, args):
        align = (like.dtype if isinstance(like, Tile) else like).bitwidth // 8
        return builder.load(_pointer(context, builder, args[1], like), align=align)

    return like(like, address), generate


@intrinsic
def store(typing, address, value):
    """Write a tile or a number to `address`."""

    def generate(context, builder, signature, args):
        align = (value.dtype if isinstance(value, Tile) else value).bitwidth // 8
        builder.store(args[1], _pointer(context, builder, args[0], value), align=align)
        return context.get_dummy_value()

    return types.void(address, value), generate


@intrinsic
def multiply_add(typing, x, y, z):
    """x * y + z; x may be a number."""

    def generate(context, builder, signature, args):
        left, right, addend = args
        vector = right.type
        if not isinstance(x, Tile):
            left = _splat(builder, left, vector)
        return builder.call(_fmuladd(builder, y), [left, right, addend])

    return y(x, y, z), generate


@intrinsic
def multiply(typing, x, y):
    """x * y; x may be a number."""

    def generate(context, builder, signature, args):
        left = args[0] if isinstance(x, Tile) else _splat(builder, args[0], args[1].type)
        return builder.fmul(left, args[1])

    return y(x, y), generate


@intrinsic
def rectified(typing, tile):
    """The numbers of a tile that are not below 0, and 0 for the others; NaN stays."""

    def generate(context, builder, signature, args):
        zero = ir.Constant(args[0].type, None)
        return builder.select(builder.fcmp_ordered("<", args[0], zero), zero, args[0])

    return tile(tile), generate


@intrinsic
def total(typing, tile):
    """The sum of the numbers of a tile."""

    def generate(context, builder, signature, args):
        number = context.get_value_type(tile.dtype)
        kind = "f32" if tile.dtype == types.float32 else "f64"
        function = builder.module.declare_intrinsic(
            f"llvm.vector.reduce.fadd.v{tile.width}{kind}", fnty=ir.FunctionType(number, [number, args[0].type])
        )
        return builder.call(function, [ir.Constant(number, -0.0), args[0]], fastmath=("reassoc",))

    return tile.dtype(tile), generate


@intrinsic
def constant(typing, like, value):
    """`value` in the type of `like`."""

    def generate(context, builder, signature, args):
        return context.cast(builder, args[1], value, like)

    return like(like, value), generate


@intrinsic
def at(typing, tensor, t, b, h):
    """The address of `tensor[t, b, h]`."""

    def generate(context, builder, signature, args):
        address, *strides = (builder.extract_value(args[0], i) for i in range(4))
        for stride, index in zip(strides, args[1:], strict=True):
            address = builder.add(address, builder.mul(stride, index))
        return address

    return types.int64(tensor, types.int64, types.int64, types.int64), generate


@intrinsic
def size_of(typing, value):
    """Bytes of a number or a tile."""
    bits = value.dtype.bitwidth * value.width if isinstance(value, Tile) else value.bitwidth

    def generate(context, builder, signature, args):
        return ir.Constant(ir.IntType(64), bits // 8)

    return types.int64(value), generate


@intrinsic
def prefetch(typing, address):
    """Ask for the cache line at `address`, which may be anything."""

    def generate(context, builder, signature, args):
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch.p0", fnty=ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        )
        constants = [ir.Constant(flag, value) for value in (0, 3, 1)]  # to read, keep it close, data
        builder.call(function, [builder.inttoptr(args[0], byte), *constants])
        return context.get_dummy_value()

    return types.void(address), generate


@intrinsic
def fold_product(typing, x, y, addend):
    """x * y folded to the narrower tile `addend`, plus `addend`."""

    def generate(context, builder, signature, args):
        left, right, result = args
        function = _fmuladd(builder, addend)
        for first in range(0, x.width, addend.width):
            lanes = range(first, first + addend.width)
            result = builder.call(function, [_shuffle(builder, z, z, lanes) for z in (left, right)] + [result])
        return result

    return addend(x, y, addend), generate


@intrinsic
def totals(typing, like, address):
    """The sums of as many tiles as a tile is wide, stored one after the other at `address`."""

    def generate(context, builder, signature, args):
        n = like.width
        pointer = _pointer(context, builder, args[1], like)
        index = [ir.Constant(ir.IntType(64), i) for i in range(n)]
        tiles = [builder.load(builder.gep(pointer, [i]), align=like.dtype.bitwidth // 8) for i in index]
        # Two tiles become one of half sums, lanes of the second where the bit is set: n tiles become one of n sums.
        bit = n // 2
        while bit:
            pairs = zip(tiles[:bit], tiles[bit:], strict=True)
            own = [lane + n if lane & bit else lane for lane in range(n)]
            other = [(lane ^ bit) + (n if lane & bit else 0) for lane in range(n)]
            tiles = [builder.fadd(_shuffle(builder, x, y, own), _shuffle(builder, x, y, other)) for x, y in pairs]
            bit //= 2
        return tiles[0]

    return like(like, address), generate


@intrinsic
def is_set(typing, address):
    """Whether the bool at `address` is true."""

    def generate(context, builder, signature, args):
        byte = builder.load(builder.inttoptr(args[0], ir.IntType(8).as_pointer()))
        return builder.icmp_unsigned("!=", byte, ir.Constant(ir.IntType(8), 0))

    return types.boolean(address), generate


@intrinsic
def splat(typing, number, like):
    """The tile like `like` whose numbers are all `number`."""

    def generate(context, builder, signature, args):
        return _splat(builder, args[0], args[1].type)

    return like(number, like), generate
