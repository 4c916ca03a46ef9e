import os

from spack.package import *


def checkout():
    """The source tree in which this recipe lies."""
    return os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 4))


class Stablemoe(MesonPackage):
    """Distributed MPI expert-parallel trainer for Mixture-of-Experts models on CPU clusters: one C11 program, the
    same bits on any number of ranks, checkpoints and routing logs in parallel HDF5."""

    git = "file://" + checkout()

    license("MIT")

    # What is committed there; `spack dev-build stablemoe@main` builds the files as they are.
    version("main", branch="main")

    variant("onednn", default=True, description="GEMM by oneDNN on CPUs with AVX-512, next to OpenBLAS")
    variant("analysis", default=True, description="Python packages for reports and figures")

    depends_on("c", type="build")
    depends_on("cxx", type="build")
    depends_on("meson@1.0:", type="build")
    depends_on("ninja", type="build")
    depends_on("pkgconfig", type="build")

    depends_on("mpi")
    depends_on("hdf5@1.10.7: +mpi +hl")
    # Threads of its own would fight with those of OpenMP.
    depends_on("openblas threads=openmp")
    depends_on("onednn@2.6: cpu_runtime=omp", when="+onednn")
    depends_on("sentencepiece@0.1.97:")
    depends_on("libarchive compression=bz2lib,lzma,zlib,zstd")
    depends_on("jansson")
    depends_on("libyaml")
    depends_on("xxhash")
    depends_on("zlib-api")
    depends_on("libpng")
    depends_on("random123@1.13:")

    depends_on("python@3.10:", type="run", when="+analysis")
    depends_on("py-numpy", type="run", when="+analysis")
    depends_on("py-h5py", type="run", when="+analysis")
    depends_on("py-matplotlib", type="run", when="+analysis")
    depends_on("py-pyyaml", type="run", when="+analysis")

    def meson_args(self):
        return [
            # Spack's compiler wrapper adds the flags of the target.
            "-Dcpu=",
            "-Dtests=false",
            "-Donednn=" + ("enabled" if self.spec.satisfies("+onednn") else "disabled"),
        ]

    def setup_run_environment(self, env):
        env.prepend_path("PYTHONPATH", self.prefix.share.stablemoe)

    @run_after("install")
    @on_package_attributes(run_tests=True)
    def check_install(self):
        """A run of a few updates: it needs no cluster."""
        Executable(self.prefix.bin.stablemoe)("--version")
        with working_dir("spack-check", create=True):
            program = Executable(self.prefix.bin.stablemoe)
            program("prepare", os.path.join(self.prefix.share.doc, "stablemoe"), "-o", "corpus.h5", "--vocab", "400")
            program("train", os.path.join(self.prefix.share.stablemoe, "configs", "tiny", "stable.yml"), "-P",
                    "data.corpus=corpus.h5", "-P", "run.directory=run", "-P", "train.updates=4", "-P", "schedule.warmup=1")
