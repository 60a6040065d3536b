// MXFP4, decoded between the products of tiles.
#include "../avx512_vnni/MXFP4.cpp"
