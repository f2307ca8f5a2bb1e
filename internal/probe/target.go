// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// Protocols that can be asked.
const (
	TCP  = "tcp"
	UDP  = "udp"
	ICMP = "icmp"
	// Connect is TCP to somebody who does not echo: that the connection is made is enough.
	Connect = "connect"
	// DNS4 and DNS6 ask the resolver of the pod for addresses of that family.
	DNS4 = "dns4"
	DNS6 = "dns6"
)

// ErrTarget says that a target cannot be understood.
var ErrTarget = errors.New("want tcp|udp|connect://HOST:PORT[?size=BYTES], icmp://HOST[?size=BYTES] or dns4|dns6://NAME")

// Target is one question: does Host answer?
type Target struct {
	Protocol string
	// Host is an address without brackets, or a name.
	Host string
	// Port in host order; 0 for ICMP and DNS.
	Port uint16
	// Size of the payload in bytes, which comes back whole and is compared.
	Size int
}

// maxSize is what fits one datagram with its headers.
const maxSize = 65000

// ParseTarget reads what String writes.
func ParseTarget(text string) (Target, error) {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.Path != "" {
		return Target{}, fmt.Errorf("target %q: %w", text, ErrTarget)
	}
	t := Target{Protocol: u.Scheme, Host: u.Hostname()}
	switch t.Protocol {
	case TCP, UDP, Connect:
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil || port == 0 {
			return Target{}, fmt.Errorf("target %q: %w", text, ErrTarget)
		}
		t.Port = uint16(port)
	case ICMP, DNS4, DNS6:
		if u.Port() != "" {
			return Target{}, fmt.Errorf("target %q: %w", text, ErrTarget)
		}
	default:
		return Target{}, fmt.Errorf("target %q: %w", text, ErrTarget)
	}
	if size := u.Query().Get("size"); size != "" {
		if t.Size, err = strconv.Atoi(size); err != nil || t.Size < 0 || t.Size > maxSize {
			return Target{}, fmt.Errorf("target %q: size is not a number of bytes up to %d", text, maxSize)
		}
	}
	return t, nil
}

func (t Target) String() string {
	host := t.Host
	if t.Port != 0 {
		host = net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
	} else if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	text := t.Protocol + "://" + host
	if t.Size != 0 {
		text += "?size=" + strconv.Itoa(t.Size)
	}
	return text
}

// Result is the answer to one target.
type Result struct {
	Target string `json:"target"`
	OK     bool   `json:"ok"`
	// Error of the last attempt, in words.
	Error string `json:"error,omitempty"`
	// Addresses that a name has, for DNS.
	Addresses []string `json:"addresses,omitempty"`
	// Attempts that were made; the last one is the answer.
	Attempts int `json:"attempts"`
	// Micros is how long the last attempt took, in microseconds.
	Micros int64 `json:"micros"`
}
