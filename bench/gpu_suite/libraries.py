"""Where our programs find their libraries: in the archive, in the Python environment, or in the C library's own family. Anything else
would be a library that another machine lacks."""

import re
import shutil
import subprocess

from suite import Broken, torch_libraries

# Of every machine that runs torch.
FAMILY = re.compile(r"^(linux-vdso|ld-linux|libc|libm|libdl|librt|libpthread|libutil|libresolv|libstdc\+\+|libgcc_s)(?![\w+])")


def elf_files(build):
    """Programs and libraries of the archive."""
    found = [path for path in sorted(build.rglob("*")) if path.is_file() and path.stat().st_size > 4]
    return [path for path in found if path.open("rb").read(4) == b"\x7fELF"]


def stray(text, allowed):
    """Lines of ldd's output that name a library which is missing or lies elsewhere than in `allowed` folders."""
    wrong = []
    for line in text.splitlines():
        words = line.split()
        if "=>" not in words or FAMILY.match(words[0]):
            continue
        path = words[words.index("=>") + 1]
        if not any(path.startswith(f"{folder}/") for folder in allowed):
            wrong.append(" ".join(words[:3]))
    return wrong


def check(suite, section):
    """In an unpacked archive, which has a lib folder of its own. Where the programs were built they look where their linker said."""
    if not (suite.build / "lib").is_dir():
        return section.not_run("libraries", "these programs are where they were built")
    if shutil.which("ldd") is None:
        return section.not_run("libraries", "ldd is not installed here")
    # The wheels' own libraries name each other by way of torch/lib/../..
    site = torch_libraries()[0].parent.parent
    allowed = (suite.build, site, site.resolve())
    files = elf_files(suite.build)
    for path in files:
        done = subprocess.run(["ldd", path], env=suite.environment(), capture_output=True, text=True, check=False)
        wrong = stray(done.stdout, allowed)
        if wrong:
            raise Broken(f"{path.relative_to(suite.build)} needs what the archive lacks: {'; '.join(wrong)}")
    section.figure("files of the archive that need nothing else", len(files), "files")
