// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// errNoAnswer says that something sent did not come back.
var errNoAnswer = errors.New("no answer")

// record is the size of one numbered record: its number, big endian.
const record = 8

// settle is how long answers may take after the last record was sent.
const settle = 2 * time.Second

// report is what flows prints as JSON.
type report struct {
	Target   string       `json:"target"`
	Seconds  float64      `json:"seconds"`
	Stream   streamReport `json:"stream"`
	Datagram countReport  `json:"datagram"`
	Connect  countReport  `json:"connect"`
}

// streamReport is one TCP connection for the whole time.
type streamReport struct {
	Sent  uint64 `json:"sent"`
	Back  uint64 `json:"back"`
	Error string `json:"error,omitempty"`
	// LongestGapMs is the longest silence between two records that came back.
	LongestGapMs float64 `json:"longestGapMs"`
}

// countReport is numbered datagrams, or connections made one after the other.
type countReport struct {
	Sent       uint64 `json:"sent"`
	Back       uint64 `json:"back"`
	Lost       uint64 `json:"lost"`
	Duplicates uint64 `json:"duplicates"`
	// LongestGapMs is between answers of datagrams; of connections, the slowest.
	LongestGapMs float64 `json:"longestGapMs"`
	// Errors counts by text.
	Errors map[string]int `json:"errors,omitempty"`
}

// load is how busy flows keeps its target.
type load struct {
	target                                string
	length                                time.Duration
	streamRate, datagramRate, connectRate int
}

func runFlows(ctx context.Context, args []string) error {
	var l load
	flags := flag.NewFlagSet("flows", flag.ContinueOnError)
	flags.DurationVar(&l.length, "for", 10*time.Second, "how long")
	flags.IntVar(&l.streamRate, "stream", 1000, "records a second on one TCP connection")
	flags.IntVar(&l.datagramRate, "datagrams", 1000, "UDP datagrams a second")
	flags.IntVar(&l.connectRate, "connects", 100, "new TCP connections a second")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return fmt.Errorf("%w: flows takes the address of an echo server, such as 10.0.0.1:7007", errUsage)
	}
	l.target = flags.Arg(0)
	r, err := l.run(ctx)
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(r); err != nil {
		return err
	}
	if r.Stream.Error != "" || r.Stream.Sent != r.Stream.Back || r.Datagram.Lost+r.Connect.Lost > 0 {
		return fmt.Errorf("%s: %w", l.target, errNoAnswer)
	}
	return nil
}

// run keeps all three going until the time is over or ctx ends, and counts.
// It returns an error only when it could not begin.
func (l load) run(ctx context.Context) (*report, error) {
	ctx, cancel := context.WithTimeout(ctx, l.length)
	defer cancel()
	r := &report{Target: l.target}
	start := time.Now()
	var wg sync.WaitGroup
	if l.streamRate > 0 {
		conn, err := net.DialTimeout("tcp", l.target, 5*time.Second)
		if err != nil {
			return nil, fmt.Errorf("stream: %w", err)
		}
		wg.Go(func() { r.Stream = stream(ctx, conn, l.streamRate) })
	}
	if l.datagramRate > 0 {
		conn, err := net.Dial("udp", l.target)
		if err != nil {
			return nil, fmt.Errorf("datagrams: %w", err)
		}
		wg.Go(func() { r.Datagram = datagrams(ctx, conn, l.datagramRate) })
	}
	if l.connectRate > 0 {
		wg.Go(func() { r.Connect = connects(ctx, l.target, l.connectRate) })
	}
	wg.Wait()
	r.Seconds = time.Since(start).Seconds()
	return r, nil
}

// paced calls act with 0, 1, 2... at the rate until ctx ends or act fails. A
// late call is made up for, so the count follows from the time alone.
func paced(ctx context.Context, rate int, act func(number uint64) error) (uint64, error) {
	start := time.Now()
	for number := uint64(0); ; number++ {
		due := start.Add(time.Duration(number) * time.Second / time.Duration(rate))
		timer := time.NewTimer(time.Until(due))
		select {
		case <-ctx.Done():
			timer.Stop()
			return number, nil
		case <-timer.C:
		}
		if err := act(number); err != nil {
			return number, err
		}
	}
}

func stream(ctx context.Context, conn net.Conn, rate int) streamReport {
	defer conn.Close()
	var r streamReport
	read := make(chan error, 1)
	go func() { read <- r.readBack(conn) }()
	var buffer [record]byte
	sent, err := paced(ctx, rate, func(number uint64) error {
		binary.BigEndian.PutUint64(buffer[:], number)
		_, err := conn.Write(buffer[:])
		return err
	})
	if err == nil {
		// Our end of the stream; the echo's end follows its last record.
		_ = conn.SetReadDeadline(time.Now().Add(settle))
		err = conn.(*net.TCPConn).CloseWrite()
	}
	err = errors.Join(err, <-read)
	r.Sent = sent
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

// readBack checks that records come back in order. Only this loop writes Back
// and LongestGapMs while it runs.
func (r *streamReport) readBack(conn net.Conn) error {
	var buffer [record]byte
	last := time.Now()
	for {
		if _, err := io.ReadFull(conn, buffer[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if number := binary.BigEndian.Uint64(buffer[:]); number != r.Back {
			return fmt.Errorf("record %d came as number %d", r.Back, number)
		}
		r.Back++
		now := time.Now()
		r.LongestGapMs = max(r.LongestGapMs, milliseconds(now.Sub(last)))
		last = now
	}
}

func datagrams(ctx context.Context, conn net.Conn, rate int) countReport {
	defer conn.Close()
	var r countReport
	done := make(chan map[uint64]int, 1)
	go func() { done <- r.collect(conn) }()
	failures := map[string]int{}
	var buffer [record]byte
	sent, _ := paced(ctx, rate, func(number uint64) error {
		binary.BigEndian.PutUint64(buffer[:], number)
		if _, err := conn.Write(buffer[:]); err != nil {
			failures[err.Error()]++ // a refused port is told at the next write
		}
		return nil
	})
	_ = conn.SetReadDeadline(time.Now().Add(settle))
	seen := <-done
	r.Sent, r.Errors = sent, failures
	r.Back = uint64(len(seen))
	r.Lost = r.Sent - r.Back
	for _, times := range seen {
		r.Duplicates += uint64(times - 1)
	}
	return r
}

// collect counts how often each number came back, until the read deadline.
func (r *countReport) collect(conn net.Conn) map[uint64]int {
	seen := map[uint64]int{}
	buffer := make([]byte, largestDatagram)
	last := time.Now()
	for {
		n, err := conn.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			return seen
		}
		if err != nil || n != record {
			continue // an ICMP error: the sender counts it
		}
		seen[binary.BigEndian.Uint64(buffer)]++
		now := time.Now()
		r.LongestGapMs = max(r.LongestGapMs, milliseconds(now.Sub(last)))
		last = now
	}
}

// connects makes connections at the rate, each on its own: a slow one delays no other.
func connects(ctx context.Context, target string, rate int) countReport {
	r := countReport{Errors: map[string]int{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	sent, _ := paced(ctx, rate, func(number uint64) error {
		wg.Go(func() {
			start := time.Now()
			err := connectOnce(target, number)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				r.Errors[plain(err)]++
				return
			}
			r.Back++
			r.LongestGapMs = max(r.LongestGapMs, milliseconds(time.Since(start)))
		})
		return nil
	})
	wg.Wait()
	r.Sent = sent
	r.Lost = r.Sent - r.Back
	return r
}

func connectOnce(target string, number uint64) error {
	conn, err := net.DialTimeout("tcp", target, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	var out, back [record]byte
	binary.BigEndian.PutUint64(out[:], number)
	if _, err := conn.Write(out[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, back[:]); err != nil {
		return err
	}
	if out != back {
		return errNoAnswer
	}
	return nil
}

// plain is an error without the ports, so that equal ones count as one.
func plain(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Op + ": " + op.Err.Error()
	}
	return err.Error()
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
