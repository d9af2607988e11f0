// Exists to carry the precompiled torch header that every room marked TORCH shares.
