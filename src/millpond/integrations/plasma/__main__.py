"""`python -m millpond.integrations.plasma -s NAME -m BYTES`: what `plasma_store` was."""

from millpond.integrations.plasma.keeper import main

raise SystemExit(main())
