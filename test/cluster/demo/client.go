// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

func runClient(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("client", flag.ContinueOnError)
	interval := flags.Duration("interval", time.Second, "pause between calls")
	timeout := flags.Duration("timeout", 2*time.Second, "longest wait for an answer")
	count := flags.Int("count", 0, "number of calls (0: until stopped)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return fmt.Errorf("%w: client takes one URL", errUsage)
	}
	// A connection for each call: each is balanced and judged anew.
	client := &http.Client{Timeout: *timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	failed := 0
	for i := 1; *count == 0 || i <= *count; i++ {
		line, err := call(ctx, client, flags.Arg(0))
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			failed++
			line = "error: " + err.Error()
		}
		fmt.Printf("%s %4d  %s\n", time.Now().UTC().Format("15:04:05.000"), i, line)
		select {
		case <-ctx.Done():
		case <-time.After(*interval):
		}
	}
	if failed > 0 && *count > 0 {
		return fmt.Errorf("%d of %d calls: %w", failed, *count, errNoAnswer)
	}
	return nil
}

// call gets the URL once and returns the answer on one line.
func call(ctx context.Context, client *http.Client, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	start := time.Now()
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4096))
	if err != nil {
		return "", err
	}
	words := strings.Join(strings.Fields(string(body)), " ")
	return fmt.Sprintf("%d %s (%s)", response.StatusCode, words, time.Since(start).Round(100*time.Microsecond)), nil
}
