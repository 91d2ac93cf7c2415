"""The papers' claims in miniature; docs/evidence.md says what came out."""
