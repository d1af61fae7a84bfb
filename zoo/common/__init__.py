"""What all packages use and nobody outside them: checks of arguments, tiles, norms, precision."""
