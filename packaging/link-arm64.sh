#!/bin/sh
# What packaging/abort-gcc links with for arm64. Were this option among rustc's, the path would get into the names of symbols.
lib=lib/aarch64-linux-gnu
exec aarch64-linux-gnu-gcc "-Wl,-rpath-link=$NODEWALL_SYSROOT/$lib:$NODEWALL_SYSROOT/usr/$lib" "$@"
