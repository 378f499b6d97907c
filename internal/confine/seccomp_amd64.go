package confine

import "golang.org/x/sys/unix"

var abis = []abi{
	{arch: unix.AUDIT_ARCH_X86_64, or: 0x40000000, ioctl: 514, socket: 41, socketpair: 53}, // x32
	{arch: unix.AUDIT_ARCH_X86_64, ioctl: unix.SYS_IOCTL, socket: unix.SYS_SOCKET, socketpair: unix.SYS_SOCKETPAIR},
	{arch: unix.AUDIT_ARCH_I386, ioctl: 54, socket: 359, socketpair: 360, socketcall: 102},
}
