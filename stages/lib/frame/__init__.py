"""What every stage stands on: params, files, tracking, energy, code identity. Knows no tensor."""
