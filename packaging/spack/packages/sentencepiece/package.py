# The recipe that Spack brings ends with version 0.1.91; this one adds a newer release.
from spack.package import *
from spack.pkg.builtin.sentencepiece import Sentencepiece as BuiltinSentencepiece


class Sentencepiece(BuiltinSentencepiece):
    __doc__ = BuiltinSentencepiece.__doc__

    version(
        "0.2.0",
        sha256="9970f0a0afee1648890293321665e5b2efa04eaec9f1671fcf8048f456f5bb86",
        url="https://github.com/google/sentencepiece/archive/v0.2.0.tar.gz",
    )
