package packet

// Why a frame is refused before or while it is routed, by what ip_rcv and
// ipv6_rcv check. Other packages register theirs beside their code.
var (
	DropTruncated  = NewReason("ip.truncated", "The frame is shorter than its IPv4 header or its total length says.")
	DropBadVersion = NewReason("ip.bad_version", "The frame begins with neither an IPv4 nor an IPv6 version number.")
	DropBadHeader  = NewReason("ip.bad_header", "The IPv4 header length is below 20 bytes.")
	DropBadSum     = NewReason("ip.bad_checksum", "The IPv4 header checksum is wrong.")
	DropBadLength  = NewReason("ip.bad_length", "The IPv4 total length is smaller than the header.")
	DropBadOptions = NewReason("ip.bad_options", "The IPv4 options are malformed; the sender is told by a parameter problem.")
	DropSourceRt   = NewReason("ip.source_route", "A source-routed packet where source routes are not accepted, or one that cannot be followed.")
	DropOtherHost  = NewReason("ip.other_host", "The frame was sent to another station's link address.")
	DropBadOffload = NewReason("ip.bad_offload", "The offload header that came with the frame does not fit the frame.")

	Drop6Truncated  = NewReason("ipv6.truncated", "The frame is shorter than its IPv6 header or its payload length says.")
	Drop6BadAddress = NewReason("ipv6.bad_address", "Source or destination is one that must not be on a wire: loopback, multicast source, multicast scope 0 or 1.")
	Drop6BadOptions = NewReason("ipv6.bad_options", "The hop-by-hop options are malformed.")
	Drop6UnknownOpt = NewReason("ipv6.unknown_option", "An unknown hop-by-hop option that asks for the packet to be dropped.")
	Drop6BadJumbo   = NewReason("ipv6.bad_jumbo", "A jumbo payload option that contradicts the header or is too small.")
)
