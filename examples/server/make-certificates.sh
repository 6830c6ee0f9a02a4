#!/bin/sh
# Makes a private authority and a certificate signed by it: certificates/{ca,server}.{pem,key}. Programs get ca.pem, the proxy
# server.pem and server.key; ca.key belongs somewhere safe.
#
# Usage: make-certificates.sh NAME [FOLDER]      NAME is what programs will connect to: a host name or an IP address.
set -eu

name="${1:?usage: make-certificates.sh NAME [FOLDER]}"
folder="${2:-$(dirname "$0")/certificates}"
days=825

case "$name" in
    *:*) alternative="IP:$name" ;;
    *[!0-9.]*) alternative="DNS:$name" ;;
    *) alternative="IP:$name" ;;
esac

umask 077
mkdir -p "$folder"
cd "$folder"

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -days "$days" \
    -subj "/CN=private authority for $name" -addext "keyUsage=critical,keyCertSign,cRLSign" \
    -keyout ca.key -out ca.pem

openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -subj "/CN=$name" \
    -keyout server.key -out server.csr

printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n' "$alternative" >server.ext
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -sha256 -days "$days" \
    -extfile server.ext -out server.pem
rm server.csr server.ext
chmod 644 ca.pem server.pem
