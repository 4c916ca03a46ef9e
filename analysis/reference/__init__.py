"""The equations of the program in NumPy, in double precision: a reference to compare with.

Written from the equations of the papers and of doc/methods.md, not from the C sources, and for
reading rather than speed. Every backward function stands behind its forward function and quotes
the line it differentiates where that is not obvious.

    settings        what the equations need of a configuration
    counter_random  random numbers
    layers          norm, feed-forward layer, attention, block
    sublayers       those of other models: RMS norm, GELU, SwiGLU, rotary positions, attention of every form
    routers, places every routing method; call, distilled, assignment, sampled, scores, tables and
                    top_choice are parts of theirs
    moe             the MoE layer: capacity, experts, combine
    gates           gates that skip sublayers of a block
    model           the language model
    training        batches, gradients of an update, Adam, what is frozen and what decays
    initial         initial values
    upcycle         experts made of a dense model's feed-forward layers
    figures         the columns of metrics.csv and of the routing log

A model is a dict of parameters by their names in a checkpoint (below /param) and a
`Config`. `forward` gives loss terms as sums over the tokens of one micro-batch,
`backward` adds gradients; the caller divides once, by the targets of the update:

    terms, cache = forward(params, tokens, targets, config, stage=1)
    backward(grads, params, cache, config, 1 / n_targets)

Letters: S sequences, T context, N = S T tokens, C width, F inner width, H heads,
D = C / H, V vocabulary, E experts, K slots, L blocks, M MoE layers.
"""

from .call import Call, Routing, argmax, gap  # noqa: F401
from .layers import FFN, attention_backward, attention_forward, ffn_arrays, log_softmax, sigmoid  # noqa: F401
from .model import backward, forward  # noqa: F401
from .moe import keep_first, moe_backward, moe_forward  # noqa: F401
from .methods import METHODS  # noqa: F401
from .settings import Config, read_keys  # noqa: F401
from .training import (adam, after_update, batch, clip_factor, gradient_norm, gradients, is_decayed,  # noqa: F401
                       is_frozen, is_held, learning_rate, sequences)
