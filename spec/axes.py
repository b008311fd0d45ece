"""One lower-case letter an axis, the same in einsum strings, array suffixes and shape annotations.

    b batch   t time   d model width   n state width   f MLP width   v vocabulary   c chunk   l layer
    k taps of a convolution

`decay_btd` is an array of shape (b, t, d); `Float[Array, BTD]` annotates it.
"""

BT = "b t"
BC = "b c"
BD = "b d"
BTD = "b t d"
BTV = "b t v"
LBN = "l b n"
D = "d"
VD = "v d"
KD = "k d"
SCALAR = ""
# Tokens of all rows in one line, and with any leading axes.
N = "n"
ND = "n d"
ANY_D = "*any d"
ANY_V = "*any v"
ANY = "*any"
# The inputs and outputs of a linear layer.
BTI = "b t i"
BTO = "b t o"
OI = "o i"
NI = "n i"
NO = "n o"
BTF = "b t f"
# The mixer's pre-activations: value, decay and output gate along the last axis.
BT3D = "b t 3d"
# The states of a Liquid SSM and its pre-activations: drive and time constants along the last axis.
BN = "b n"
BTN = "b t n"
BTX = "b t x"
LBTN = "l b t n"
