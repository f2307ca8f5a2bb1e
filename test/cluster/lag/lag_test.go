// SPDX-License-Identifier: Apache-2.0

package lag_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/kube-cilium/kube-cilium/test/cluster/lag"
)

const delay = 300 * time.Millisecond

// TestWatchesAreLateAndOrdered serves three events, one at once and two
// later, and looks when they come through.
func TestWatchesAreLateAndOrdered(t *testing.T) {
	upstream := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for i := range 3 {
			fmt.Fprintf(w, "%d %s\n", i, r.Header.Get("Authorization"))
			w.(http.Flusher).Flush()
			time.Sleep(50 * time.Millisecond)
		}
	}))
	defer upstream.Close()
	target, err := url.Parse(upstream.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httptest.NewServer(lag.Proxy{
		Upstream: target, Transport: &tls.Config{RootCAs: upstream.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs},
		Delay: delay, Resources: []string{"ciliumidentities"},
	}.Handler())
	defer proxy.Close()

	for path, late := range map[string]bool{
		"/apis/kube-cilium.io/v1alpha1/ciliumidentities?watch=true":  true,
		"/apis/kube-cilium.io/v1alpha1/ciliumidentities?watch=1":     true,
		"/apis/kube-cilium.io/v1alpha1/ciliumidentities?watch=false": false,
		"/apis/kube-cilium.io/v1alpha1/ciliumidentities":             false,
		"/apis/kube-cilium.io/v1alpha1/ciliumnodes?watch=true":       false,
	} {
		first := firstEvent(t, proxy.URL+path)
		if late != (first >= delay) {
			t.Errorf("%s: first event after %s", path, first)
		}
	}
}

// firstEvent returns how long the first event took, and checks all of them.
func firstEvent(t *testing.T, url string) time.Duration {
	t.Helper()
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer x")
	start := time.Now()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	var first time.Duration
	number := 0
	for lines.Scan() {
		if number == 0 {
			first = time.Since(start)
		}
		if want := fmt.Sprintf("%d Bearer x", number); lines.Text() != want {
			t.Errorf("%s: %q, want %q", url, lines.Text(), want)
		}
		number++
	}
	if number != 3 {
		t.Errorf("%s: %d events, error %v", url, number, lines.Err())
	}
	return first
}
