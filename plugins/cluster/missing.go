// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

// NotInstalledError means that the API server does not know a kind of ours. It is a meta.NoKindMatchError too.
type NotInstalledError struct {
	// Context of the kubeconfig.
	Context string
	kind    schema.GroupKind
	err     error
}

func (e *NotInstalledError) Error() string {
	where := ""
	if e.Context != "" {
		where = fmt.Sprintf(" (context %s)", e.Context)
	}
	return "kube-cilium is not installed in this cluster" + where
}

// Unwrap gives what the client said, and that the kind is not known.
func (e *NotInstalledError) Unwrap() []error {
	return []error{&meta.NoKindMatchError{GroupKind: e.kind}, e.err}
}

// List is the client's; it returns NotInstalledError where the cluster does not have our kinds.
func (c *Cluster) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	return c.installed(list, c.Client.List(ctx, list, opts...))
}

// Get is the client's; it returns NotInstalledError where the cluster does not have our kinds.
func (c *Cluster) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	return c.installed(o, c.Client.Get(ctx, key, o, opts...))
}

func (c *Cluster) installed(o runtime.Object, err error) error {
	if err == nil || !meta.IsNoMatchError(err) && !noResource(err) {
		return err
	}
	gvk, unknown := c.GroupVersionKindFor(o)
	if unknown != nil || gvk.Group != v1alpha1.GroupVersion.Group {
		return err
	}
	gvk.Kind = strings.TrimSuffix(gvk.Kind, "List")
	return &NotInstalledError{Context: c.Context, kind: gvk.GroupKind(), err: err}
}

// noResource tells a kind that is not served, of which the caches of discovery may still tell, from an object that is
// not there: of the latter the API server answers with a Status.
func noResource(err error) bool {
	var s apierrors.APIStatus
	if !apierrors.IsNotFound(err) || !errors.As(err, &s) || s.Status().Details == nil {
		return false
	}
	return slices.ContainsFunc(s.Status().Details.Causes, func(c metav1.StatusCause) bool { return c.Type == metav1.CauseTypeUnexpectedServerResponse })
}

// checkKubeconfig returns an error where nothing says which cluster is meant: clients would then ask localhost:8080, and
// its refusal says nothing of the file that is missing.
func checkKubeconfig(flags *genericclioptions.ConfigFlags) error {
	if flags.APIServer != nil && *flags.APIServer != "" || os.Getenv("KUBERNETES_MASTER") != "" || os.Getenv("KUBERNETES_SERVICE_HOST") != "" {
		return nil
	}
	loader := flags.ToRawKubeConfigLoader()
	raw, err := loader.RawConfig()
	if err != nil || len(raw.Clusters) > 0 || len(raw.Contexts) > 0 {
		return err
	}
	access := loader.ConfigAccess()
	files := access.GetLoadingPrecedence()
	if access.IsExplicitFile() {
		files = []string{access.GetExplicitFile()}
	}
	var read []string
	for _, file := range files {
		if file == "" {
			continue
		}
		if _, err := os.Stat(file); err == nil {
			read = append(read, file)
		}
	}
	switch {
	case len(read) > 0:
		return fmt.Errorf("kubeconfig %s names no cluster", strings.Join(read, ", "))
	case os.Getenv("KUBECONFIG") != "":
		return fmt.Errorf("kubeconfig %s, which KUBECONFIG names, does not exist", strings.Join(slices.DeleteFunc(slices.Clone(files), func(f string) bool { return f == "" }), ", "))
	}
	return fmt.Errorf("no kubeconfig: %s does not exist (KUBECONFIG or --kubeconfig names another)", strings.Join(files, ", "))
}
