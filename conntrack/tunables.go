package conntrack

import (
	"math"

	"sluice/internal/sysctl"
)

const second = int64(1e9)

// Further rows of the TCP timeout table: they shorten a state's timeout.
const (
	tcpRetrans = int(numTCP) + iota
	tcpUnack
	numTCPTimeouts
)

// tunables are the kernel's net.netfilter.nf_conntrack_*; timeouts in seconds.
type tunables struct {
	max, expectMax, checksum, acct, timestamp, events, logInvalid *sysctl.Var
	loose, liberal, ignoreRST, maxRetrans                         *sysctl.Var

	tcp                   [numTCPTimeouts]*sysctl.Var
	sctp                  [numSCTP]*sysctl.Var
	udp, udpStream        *sysctl.Var
	icmp, icmpv6, generic *sysctl.Var
	gre, greStream        *sysctl.Var
}

const prefix = "net.netfilter.nf_conntrack_"

func (y *tunables) init(t *Table, s *sysctl.Set) {
	num := func(name string, def, hi int64) *sysctl.Var { return s.New(prefix+name, def, 0, hi) }
	secs := func(name string, def int64) *sysctl.Var { return num(name, def, math.MaxUint32/1000) }

	y.max = num("max", 262144, math.MaxInt32)
	y.expectMax = s.New(prefix+"expect_max", 4096, 1, math.MaxInt32)
	num("count", 0, 0).Computed(func() int64 { return int64(t.Count()) })
	s.New(prefix+"buckets", 262144, 1, 1<<30).OnChange(func(n int64) { t.growTo(int(n) / 4) })
	y.checksum, y.acct, y.timestamp = num("checksum", 1, 1), num("acct", 0, 1), num("timestamp", 0, 1)
	y.events, y.logInvalid = num("events", 2, 2), num("log_invalid", 0, 255)
	y.loose, y.liberal, y.ignoreRST = num("tcp_loose", 1, 1), num("tcp_be_liberal", 0, 1), num("tcp_ignore_invalid_rst", 0, 1)
	y.maxRetrans = num("tcp_max_retrans", 3, 255)

	for i, v := range map[int]struct {
		name string
		def  int64
	}{
		int(TCPSynSent): {"syn_sent", 120}, int(TCPSynRecv): {"syn_recv", 60}, int(TCPEstablished): {"established", 432000},
		int(TCPFinWait): {"fin_wait", 120}, int(TCPCloseWait): {"close_wait", 60}, int(TCPLastAck): {"last_ack", 30},
		int(TCPTimeWait): {"time_wait", 120}, int(TCPClose): {"close", 10},
		tcpRetrans: {"max_retrans", 300}, tcpUnack: {"unacknowledged", 300},
	} {
		y.tcp[i] = secs("tcp_timeout_"+v.name, v.def)
	}
	y.tcp[TCPSynSent2] = y.tcp[TCPSynSent]
	y.tcp[TCPNone] = y.tcp[TCPSynSent]

	y.udp, y.udpStream = secs("udp_timeout", 30), secs("udp_timeout_stream", 120)
	y.icmp, y.icmpv6, y.generic = secs("icmp_timeout", 30), secs("icmpv6_timeout", 30), secs("generic_timeout", 600)
	y.gre, y.greStream = secs("gre_timeout", 30), secs("gre_timeout_stream", 180)

	for i, v := range []struct {
		name string
		def  int64
	}{{}, {"closed", 10}, {"cookie_wait", 3}, {"cookie_echoed", 3}, {"established", 210},
		{"shutdown_sent", 3}, {"shutdown_recd", 3}, {"shutdown_ack_sent", 3}, {"heartbeat_sent", 30}} {
		if i > 0 {
			y.sctp[i] = secs("sctp_timeout_"+v.name, v.def)
		}
	}
	y.sctp[SCTPNone] = y.sctp[SCTPClosed]

	// Reassembly before conntrack has its own set on IPv6.
	for _, v := range []struct {
		name string
		def  int64
	}{{"frag6_timeout", 60}, {"frag6_low_thresh", 3145728}, {"frag6_high_thresh", 4194304}} {
		num(v.name, v.def, math.MaxInt32)
	}
}

// secondsOf reads a timeout as ns.
func secondsOf(v *sysctl.Var) int64 { return v.Load() * second }
