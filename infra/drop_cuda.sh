#!/bin/sh
# Makes an installed CUDA build of torch one for CPUs alone: uninstalls NVIDIA's libraries and
# Triton, 4 GB. The loader wants these libraries and their functions when torch is imported, though
# nothing calls them without a GPU. So each is replaced by a stub of the same name, whose functions
# return 1, which is an error in all of these interfaces. CUDA's runtime and CUPTI stay: torch asks
# them whether there is a GPU. For x86-64; needs uv, gcc and binutils.
set -eu
site=$(python3 -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])')
libraries=$site/torch/lib
kept='nvidia-cuda-runtime|nvidia-cuda-cupti|nvidia-ml-py'
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

for library in "$libraries"/*.so; do
    objdump -p "$library" | awk '/NEEDED/ {print $2}' >> "$work/needed"
    # SYMBOL, or SYMBOL@VERSION
    nm --dynamic --undefined-only --with-symbol-versions "$library" | awk '{print $NF}' \
        >> "$work/symbols"
done
find "$site/nvidia" -name '*.so*' -exec basename {} \; | sort -u > "$work/before"

uv pip list --system --format freeze | cut -d= -f1 | grep -E '^(nvidia-|cuda-|triton$)' \
    | grep -vxE "$kept" > "$work/packages"
uv pip uninstall --system --requirements "$work/packages"

sort -u "$work/needed" | grep -xFf "$work/before" | while read -r name; do
    [ -z "$(find "$site/nvidia" -name "$name")" ] || continue
    case $name in
    # Libraries whose symbols have no version, or one that is not the library's name.
    libcufile.so*) own='cuFile' ;;
    libcusparseLt.so*) own='cusparseLt' ;;
    libnccl.so*) own='nccl|pnccl' ;;
    libnvshmem_host.so*) own='nvshmem' ;;
    *) own='-' ;;
    esac
    grep -E "(@$name\$|^($own))" "$work/symbols" | sort -u > "$work/own" || true
    sed -E 's/@.*//; s/.*/.globl &; .type &, @function; &:/' "$work/own" > "$work/stub.s"
    echo 'mov $1, %eax; ret' >> "$work/stub.s"
    # One version a library, or none.
    sed -nE 's/.*@(.*)/\1 { *; };/p' "$work/own" | sort -u > "$work/stub.map"
    gcc -shared -nostdlib -Wl,-soname,"$name" -o "$libraries/$name" "$work/stub.s" \
        $([ ! -s "$work/stub.map" ] || echo "-Wl,--version-script=$work/stub.map")
done
