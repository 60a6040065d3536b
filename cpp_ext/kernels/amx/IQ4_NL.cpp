// IQ4_NL, decoded between the products of tiles.
#include "../avx512_vnni/IQ4_NL.cpp"
