package router

import "sluice/packet"

// Drop reasons of the routing and forwarding steps.
var (
	reasonTTL             = packet.NewReason("ip.ttl_expired", "the TTL or hop limit ran out before forwarding; time exceeded was sent")
	reasonNoRoute         = packet.NewReason("ip.no_route", "no route to the destination; network unreachable was sent")
	reasonUnreachable     = packet.NewReason("ip.unreachable", "an unreachable route; host unreachable was sent")
	reasonProhibit        = packet.NewReason("ip.prohibit", "a prohibit route; communication administratively prohibited was sent")
	reasonBlackhole       = packet.NewReason("ip.blackhole", "a blackhole route")
	reasonMulticast       = packet.NewReason("ip.multicast", "a group that the router has not joined; multicast is not forwarded")
	reasonProtocol        = packet.NewReason("local.unknown_protocol", "a protocol that none of the router's own sockets speaks; an ICMP error was sent, as Linux does")
	reasonScope           = packet.NewReason("ip.scope", "an IPv6 address whose scope does not leave the link")
	reasonNotLocal        = packet.NewReason("tproxy.not_local", "TPROXY chose a socket for it, but no rule and route make it local")
	reasonTooBig          = packet.NewReason("ip.too_big", "larger than the next hop's MTU and must not be fragmented; fragmentation needed or packet too big was sent")
	reasonFragment        = packet.NewReason("ip.fragment_failed", "could not be fragmented to the next hop's MTU")
	reasonLinkGone        = packet.NewReason("link.gone", "the outgoing device is gone")
	reasonLinkWrite       = packet.NewReason("link.write_error", "the outgoing device refused the frame")
	reasonEchoIgnored     = packet.NewReason("icmp.echo_ignored", "an echo request that icmp_echo_ignore_all leaves unanswered")
	reasonLocalOutputFull = packet.NewReason("local.output_full", "more packets of the router's own than a worker could take")
	reasonLoop            = packet.NewReason("local.loop", "a local packet looped back too often")
	reasonHookUnknown     = packet.NewReason("hook.unnamed", "a stage dropped without naming a reason")
)
