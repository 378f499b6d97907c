package ext

import "sluice/tables"

// Registry is all extensions.
var Registry = tables.NewRegistry(
	[]*tables.Match{
		matchComment,
		matchLength,
		matchLimit,
		matchTCP,
	},
	[]*tables.Target{
		targetLOG,
	},
)
