#!/bin/sh
# Installs what the tests and the demo use, where that may be done; else says what is missing.
need="ip:iproute2 ping:iputils-ping traceroute:traceroute iperf3:iperf3 curl:curl dig:bind9-dnsutils iptables:iptables iptables-legacy:iptables conntrack:conntrack nfct:nfct ngircd:ngircd sipp:sip-tester snmptrap:snmp ipset:ipset nft:nftables nc:netcat-openbsd tcpdump:tcpdump setpriv:util-linux capsh:libcap2-bin ftp:ftp vsftpd:vsftpd tftp:tftp-hpa in.tftpd:tftpd-hpa ssh:openssh-client sshd:openssh-server python3:python3 socat:socat git:git slirp4netns:slirp4netns pasta:passt chromium:chromium man:man-db prometheus:prometheus promtool:prometheus tshark:tshark"
missing=
for n in $need; do
	PATH="$PATH:/usr/sbin:/sbin" command -v "${n%%:*}" >/dev/null 2>&1 || missing="$missing ${n##*:}"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
	echo "installing:$missing"
	export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
	{ apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >/dev/null 2>&1 ||
		echo "could not install:$missing (tests that need them are skipped)"
else
	echo "missing:$missing; to have everything run: sudo apt-get install$missing"
fi
