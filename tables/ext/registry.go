package ext

import "sluice/tables"

// Registry is all extensions.
var Registry = tables.NewRegistry(
	[]*tables.Match{
		matchAddrType,
		matchComment,
		matchDSCP,
		matchHL,
		matchICMP,
		matchICMP6,
		matchIPRange,
		matchLength,
		matchLimit,
		matchMAC,
		matchMark,
		matchMultiport,
		matchOwner,
		matchPktType,
		matchRPFilter,
		matchSCTP,
		matchTCP,
		matchTCPMSS,
		matchTOS,
		matchTTL,
		matchUDP,
	},
	[]*tables.Target{
		targetCHECKSUM,
		targetDSCP,
		targetHL,
		targetLOG,
		targetTCPMSS,
		targetTOS,
		targetTTL,
	},
)
