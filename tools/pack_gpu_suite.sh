#!/usr/bin/env bash
# Packs bench/gpu_suite, our programs and the libraries that a machine with only Python, torch, transformers and peft
# lacks into one archive. Usage: tools/pack_gpu_suite.sh [build [archive]]
#
# There: tar xJf gpu_suite.tar.xz && python3 gpu_suite/bench/gpu_suite --build gpu_suite/build --out results
# libtorch and the CUDA libraries are that Python's. The suite decodes no video: empty libraries stand in for FFmpeg's,
# whose own are a hundred more; a program finds their functions when it first calls them, which these never do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=${1:-build}
archive=${2:-$build/gpu_suite.tar.xz}
programs=(plimsoll reference_dump reduction_bench cuda_library)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
pack=$folder/gpu_suite
mkdir -p "$pack/build/lib" "$pack/bench"
cp -r bench/gpu_suite bench/peers "$pack/bench/"
rm -rf "$pack"/bench/*/__pycache__

for program in "${programs[@]}"; do
  if [ ! -x "$build/$program" ]; then echo "pack_gpu_suite: $build/$program is not built: tools/build.sh $build" >&2; exit 2; fi
  strip -o "$pack/build/$program" "$build/$program"
done
if [ -e "$build/libplimsoll_cuda.so" ]; then
  strip -o "$pack/build/libplimsoll_cuda.so" "$build/libplimsoll_cuda.so"
else
  echo "pack_gpu_suite: no libplimsoll_cuda.so in $build (nvcc was not found): the archive can only rehearse" >&2
fi

# What the programs need, libraries of libraries too, but for the ones that are there (libc's, torch's, CUDA's) and FFmpeg.
there='/(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|ld-linux-x86-64|libtorch[a-z_]*|libc10[a-z_]*|libgomp|libcu(da|dart|dnn|blas|blasLt|fft|file|pti|rand|solver|sparse|sparseLt)[a-z_]*|libnv[a-zA-Z]*|libnccl)[-.]'
video='lib(avcodec|avformat|avutil|swscale|swresample)\.so'
needed() { readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'; }
where() { ldd "$build/plimsoll" "$build/cuda_library" "$build/reduction_bench" | awk -v name="$1" '$1 == name && $3 ~ /^\// && !seen++ {print $3}'; }
add() {
  local name path
  for name in $(needed "$1"); do
    if [ -e "$pack/build/lib/$name" ] || [[ /$name =~ $there ]]; then continue; fi
    if [[ $name =~ $video ]]; then
      cc -shared -Wl,-soname,"$name" -o "$pack/build/lib/$name" -x c /dev/null
      continue
    fi
    path=$(where "$name")
    if [ -z "$path" ]; then echo "pack_gpu_suite: $name, which $1 needs, was not found" >&2; exit 2; fi
    strip -o "$pack/build/lib/$name" "$(readlink -f "$path")"
    add "$path"
  done
}
for program in "${programs[@]}"; do add "$build/$program"; done

mkdir -p "$(dirname "$archive")"
tar -C "$folder" -cJf "$archive" gpu_suite
echo "$archive: $(($(stat -c %s "$archive") / 1048576)) MiB"
