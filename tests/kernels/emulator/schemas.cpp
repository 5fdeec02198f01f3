// The operators again, for the emulated kernels.
#include "schemas.h"

STABLE_TORCH_LIBRARY_FRAGMENT(micron_emulated, m) { micron::define_operators(m); }
