#!/usr/bin/env bash
# Prints Secrets with new tokens for a namespace, for `kubectl create -f -`, which refuses to replace any that are there:
#
#     deploy/k8s/create-secrets.sh [--database URL] [--namespace andon] | kubectl create -f -
#
# Only hashes of tokens are given to the services that check them. The password of the component postgresql is made,
# too. The token of the first admin is shown once, on stderr. requirements.yaml says what each Secret is for.
set -euo pipefail

namespace=andon
database=
while [ $# -gt 0 ]; do
  case $1 in
    --namespace) namespace=${2:?--namespace needs a name}; shift 2 ;;
    --database) database=${2:?--database needs a URL}; shift 2 ;;
    *) echo "unknown option $1" >&2; exit 2 ;;
  esac
done

new_token() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
sha256() { printf %s "$1" | sha256sum | cut -d' ' -f1; }
secret() { # NAME KEY VALUE; the value as base64, so that no character needs care
  printf -- '---\napiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: %s}\ndata:\n  %s: %s\n' \
    "$1" "$namespace" "$2" "$(printf %s "$3" | base64 | tr -d '\n')"
}

trainer=$(new_token) canary=$(new_token) researcher=$(new_token) admin=$(new_token)

secret andon-trainer-token token "$trainer"
secret andon-canary-token token "$canary"
secret andon-researcher-token token "$researcher"
secret andon-tokens tokens.yaml "- {name: trainer, role: trainer, sha256: $(sha256 "$trainer")}
- {name: canary, role: service, sha256: $(sha256 "$canary")}
- {name: researcher, role: researcher, sha256: $(sha256 "$researcher")}
"
secret andon-labeling-tokens tokens.yaml "- {name: trainer, role: service, token_sha256: $(sha256 "$trainer")}
- {name: canary, role: service, token_sha256: $(sha256 "$canary")}
- {name: researcher, role: researcher, token_sha256: $(sha256 "$researcher")}
- {name: admin, role: admin, token_sha256: $(sha256 "$admin")}
"
secret andon-postgresql password "$(new_token)"
if [ -n "$database" ]; then
  secret andon-labeling-database url "$database"
fi
printf 'the admin of the labeling service has the token %s\n' "$admin" >&2
