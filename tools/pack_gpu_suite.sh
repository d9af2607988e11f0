#!/usr/bin/env bash
# Packs bench/gpu_suite, our programs and the libraries that a machine with only Python, torch, transformers and peft
# lacks into one archive. Usage: tools/pack_gpu_suite.sh [build [archive]]; an archive that ends in .tar is not compressed.
#
# There: tar xJf gpu_suite.tar.xz && python3 gpu_suite/bench/gpu_suite --build gpu_suite/build --out results
# libtorch and the CUDA libraries are that Python's. The suite decodes no video: libraries that can do nothing stand in
# for FFmpeg's, whose own are a hundred more. Open MPI comes with its mpirun, for the parts that need several ranks.
# Nothing in the archive looks into this machine's folders.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=${1:-build}
archive=${2:-$build/gpu_suite.tar.xz}
programs=(plimsoll reference_dump reduction_bench cuda_library device_conformance)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
pack=$folder/gpu_suite
mkdir -p "$pack/build/lib" "$pack/bench"
cp -r bench/gpu_suite bench/peers "$pack/bench/"
rm -rf "$pack"/bench/*/__pycache__

# Folders of this machine, which the linker left in a file, would hide there that something is missing.
take() {
  strip -o "$2" "$1"
  chmod u+w "$2"
  printf 'file(RPATH_REMOVE FILE "%s")\n' "$2" >"$folder/drop.cmake"
  cmake -P "$folder/drop.cmake" >/dev/null
}

if [ -x "$build/cuda_kernels_on_a_gpu" ]; then programs+=(cuda_kernels_on_a_gpu); fi  # built where nvcc is
for program in "${programs[@]}"; do
  if [ ! -x "$build/$program" ]; then echo "pack_gpu_suite: $build/$program is not built: tools/build.sh $build" >&2; exit 2; fi
  take "$build/$program" "$pack/build/$program"
done
if [ -e "$build/libplimsoll_cuda.so" ]; then
  take "$build/libplimsoll_cuda.so" "$pack/build/libplimsoll_cuda.so"
else
  echo "pack_gpu_suite: no libplimsoll_cuda.so in $build (nvcc was not found): the archive can only rehearse" >&2
fi

# Open MPI finds its parts below OPAL_PREFIX as it did below its own prefix (suite.py sets it). Those for networks that
# a single machine has no use for, and their libraries, stay here.
mpi_path() { ompi_info --parsable --path "$1" | sed -n "s/^path:$1://p"; }
prefix=$(mpi_path prefix) parts=$(mpi_path pkglibdir) texts=$(mpi_path pkgdatadir)
networks='lib(ucp|ucs|uct|ucm|fabric|ibverbs|rdmacm|psm|psm2|slurm|nl-)'
mpi=$pack/build/mpi
mkdir -p "$mpi/bin" "$mpi/${parts#"$prefix"/}" "$mpi/${texts#"$prefix"/}"
cp "$texts"/*.txt "$mpi/${texts#"$prefix"/}/"
mpirun=$(readlink -f "$(command -v mpirun)")
take "$mpirun" "$mpi/bin/mpirun"
mpi_files=("$mpirun")
for part in "$parts"/mca_*.so; do
  if [[ $(basename "$part") =~ ^mca_(atomic|memheap|scoll|spml|sshmem)_ ]]; then continue; fi  # OpenSHMEM's
  if ldd "$part" | grep -qE "$networks|not found"; then continue; fi
  take "$part" "$mpi/${parts#"$prefix"/}/$(basename "$part")"
  mpi_files+=("$part")
done

# What all of these need, libraries of libraries too, but for the ones that are there (libc's, torch's, CUDA's) and FFmpeg.
there='/(libc|libm|libdl|librt|libpthread|libutil|libresolv|libstdc\+\+|libgcc_s|ld-linux-x86-64|libtorch[a-z_]*|libc10[a-z_]*|libgomp|libcu(da|dart|dnn|blas|blasLt|fft|file|pti|rand|solver|sparse|sparseLt)[a-z_]*|libnv[a-zA-Z]*|libnccl)[-.]'
video='lib(avcodec|avformat|avutil|swscale|swresample)\.so'
needed() { readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'; }
# A library of functions that our programs name: with their version, as some linkers (Ubuntu's) make programs that look
# for all of them when they start. Whoever calls one ends as if its library were missing: of what the suite asks only
# `doctor` does.
stand_in() {
  local node
  node=$(tr '[:lower:]' '[:upper:]' <<<"${1%%.so*}")_${1##*.so.}
  readelf -W --dyn-syms "${programs[@]/#/$build/}" | sed -n "s/.* UND \([A-Za-z0-9_]*\)@$node\b.*/void \1(void) { _exit(127); }/p" |
    sort -u | sed '1i void _exit(int);' >"$folder/stand_in.c"
  echo "$node { global: *; };" >"$folder/stand_in.map"
  cc -shared -fPIC -w -Wl,-soname,"$1" -Wl,--version-script="$folder/stand_in.map" -o "$pack/build/lib/$1" "$folder/stand_in.c"
}
declare -A path_of
while read -r name path; do path_of[$name]=$path; done < <(
  for file in "${programs[@]/#/$build/}" "${mpi_files[@]}"; do ldd "$file"; done | awk '$2 == "=>" && $3 ~ /^\// {print $1, $3}')
add() {
  local name path
  for name in $(needed "$1"); do
    if [ -e "$pack/build/lib/$name" ] || [[ /$name =~ $there ]]; then continue; fi
    if [[ $name =~ $video ]]; then
      stand_in "$name"
      continue
    fi
    path=${path_of[$name]:-}
    if [ -z "$path" ]; then echo "pack_gpu_suite: $name, which $1 needs, was not found" >&2; exit 2; fi
    take "$(readlink -f "$path")" "$pack/build/lib/$name"
    add "$path"
  done
}
for file in "${programs[@]/#/$build/}" "${mpi_files[@]}"; do add "$file"; done
if [ -e "$build/libplimsoll_cuda.so" ]; then add "$build/libplimsoll_cuda.so"; fi

mkdir -p "$(dirname "$archive")"
XZ_OPT=${XZ_OPT:--T0} tar -C "$folder" -caf "$archive" gpu_suite
echo "$archive: $(($(stat -c %s "$archive") / 1048576)) MiB"
