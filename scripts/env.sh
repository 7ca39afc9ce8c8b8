# Common ground of the scripts here; sourced, not run: where the checkout is, which Node.js to use,
# and how to say things. scripts/setup puts a Node.js of its own into .cache/node where the
# machine has none or an old one.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PAIRWIRE_ROOT="$ROOT"
if [ -x "$ROOT/.cache/node/node_modules/.bin/node" ]; then
  export PATH="$ROOT/.cache/node/node_modules/.bin:$PATH"
fi
# Debian keeps tools such as nft and radvd where only root's PATH looks.
case ":$PATH:" in *:/usr/sbin:*) ;; *) export PATH="$PATH:/usr/sbin:/sbin" ;; esac

say() { printf '%s: %s\n' "${0##*/}" "$*"; }
fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}
