//go:build !amd64 && !arm64

package confine

var abis []abi
