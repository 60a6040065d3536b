// IQ2_XS, decoded between the products of tiles.
#include "../avx512_vnni/IQ2_XS.cpp"
