#!/bin/sh
# What busybox udhcpc calls with what it has learned: adds the address to those of the interface.
case "$1" in
  bound | renew) ip address replace "$ip/$mask" dev "$interface" && echo "bound $ip/$mask from $serverid" ;;
esac
