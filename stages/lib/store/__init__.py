"""Artefacts on disk: records, tokens, models, adapters, recordings of a teacher."""
