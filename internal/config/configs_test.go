package config

import (
	"bytes"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

var update = flag.Bool("update", false, "write configs/offline-lan.pcap anew")

// TestConfigs: every configuration that sluice comes with is without a fault and without a warning.
func TestConfigs(t *testing.T) {
	files, err := filepath.Glob("../../configs/*.toml")
	if err != nil || len(files) < 6 {
		t.Fatalf("%d configurations, %v", len(files), err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "-test.toml") { // cases for `sluice test`
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			cfg, warnings, err := Read(file)
			if err != nil || len(warnings) > 0 {
				t.Fatalf("%v\n%v", err, warnings)
			}
			if len(cfg.Interfaces) == 0 {
				t.Error("no interfaces")
			}
		})
	}
}

// TestOfflineCapture: the capture of offline-pcap.toml is the one made here.
func TestOfflineCapture(t *testing.T) {
	want := offlineCapture(t)
	name := "../../configs/offline-lan.pcap"
	if *update {
		if err := os.WriteFile(name, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("configs/offline-lan.pcap is not what this test makes; go test ./internal/config -run OfflineCapture -update")
	}
}

// offlineCapture is the frames that offline-pcap.toml speaks of.
func offlineCapture(t *testing.T) []byte {
	var out bytes.Buffer
	w := pcapgo.NewWriter(&out)
	if err := w.WriteFileHeader(65535, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1700000000, 0)
	write := func(frame []byte) {
		at = at.Add(10 * time.Millisecond)
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(frame), Length: len(frame)}, frame); err != nil {
			t.Fatal(err)
		}
	}
	build := func(ip *layers.IPv4, rest ...gopacket.SerializableLayer) []byte {
		eth := &layers.Ethernet{
			SrcMAC: net.HardwareAddr{2, 0, 0, 0, 1, 2}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 1, 1}, EthernetType: layers.EthernetTypeIPv4,
		}
		b := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
			append([]gopacket.SerializableLayer{eth, ip}, rest...)...); err != nil {
			t.Fatal(err)
		}
		return bytes.Clone(b.Bytes())
	}
	ip := func(proto layers.IPProtocol, ttl uint8, dst string) *layers.IPv4 {
		return &layers.IPv4{Version: 4, TTL: ttl, Protocol: proto, SrcIP: net.IP{10, 0, 1, 2}, DstIP: net.ParseIP(dst).To4()}
	}
	dns := func() []byte {
		i := ip(layers.IPProtocolUDP, 64, "203.0.113.53")
		u := &layers.UDP{SrcPort: 40000, DstPort: 53}
		u.SetNetworkLayerForChecksum(i)
		return build(i, u, &layers.DNS{ID: 7, RD: true, QDCount: 1, Questions: []layers.DNSQuestion{
			{Name: []byte("example.org"), Type: layers.DNSTypeA, Class: layers.DNSClassIN},
		}})
	}
	syn := func(port layers.TCPPort) []byte {
		i := ip(layers.IPProtocolTCP, 64, "203.0.113.80")
		s := &layers.TCP{SrcPort: 40001, DstPort: port, Seq: 1000, SYN: true, Window: 64240, Options: []layers.TCPOption{
			{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}},
		}}
		s.SetNetworkLayerForChecksum(i)
		return build(i, s)
	}
	ping := func(ttl uint8, dst string) []byte {
		return build(ip(layers.IPProtocolICMPv4, ttl, dst),
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: 9, Seq: 1},
			gopacket.Payload("0123456789abcdef"))
	}
	write(dns())
	write(syn(80))
	write(syn(25))
	write(ping(64, "203.0.113.1"))
	write(ping(64, "10.0.1.1"))
	write(ping(1, "203.0.113.1")) // a traceroute's first step

	const ipAt = 14 // behind the Ethernet header
	checksum := dns()
	checksum[ipAt+10] ^= 0xff
	write(checksum)                          // ip.bad_checksum
	write(ping(64, "203.0.113.1")[:ipAt+12]) // cut off within the header
	version := dns()
	version[ipAt] = 0x55
	write(version) // neither IPv4 nor IPv6
	length := dns()
	length[ipAt+2] ^= 0xff
	length[ipAt+10] ^= 0xff // keeps the checksum right
	write(length)           // claims more bytes than there are
	return out.Bytes()
}
