// IQ4_XS, decoded between the products of tiles.
#include "../avx512_vnni/IQ4_XS.cpp"
