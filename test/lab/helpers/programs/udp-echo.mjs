// UDP in all sizes, for test/lab/traffic.test.ts.
//   node udp-echo.mjs serve PORT            sends every datagram back
//   node udp-echo.mjs probe HOST PORT MAX   sends 1..MAX bytes, wants each back as it was; prints JSON
import { createHash } from 'node:crypto';
import { createSocket } from 'node:dgram';

const [, , mode, ...args] = process.argv;
/** Datagrams under way at once: few enough that no socket buffer overflows. */
const WINDOW = 16;
/** How long the probe waits for the last answers, ms. */
const PATIENCE_MS = 5_000;

/** Bytes that depend on the size, so that no two datagrams are alike. */
function contentOf(size) {
  const seed = createHash('sha256').update(String(size)).digest();
  const bytes = Buffer.alloc(size);
  for (let at = 0; at < size; at += seed.length) seed.copy(bytes, at);
  return bytes;
}

function serve(port) {
  const socket = createSocket({ type: 'udp6' });
  socket.on('message', (message, from) => socket.send(message, from.port, from.address));
  socket.bind(port, '::', () => console.log('ready'));
}

function probe(host, port, max) {
  const socket = createSocket({
    type: host.includes(':') ? 'udp6' : 'udp4',
    recvBufferSize: 1 << 20,
  });
  const waiting = new Set();
  const altered = [];
  let next = 1;
  let back = 0;
  const finish = () => {
    console.log(JSON.stringify({ sent: next - 1, back, altered, missing: [...waiting] }));
    process.exit(0);
  };
  let timer = setTimeout(finish, PATIENCE_MS);
  const fill = () => {
    while (waiting.size < WINDOW && next <= max) {
      waiting.add(next);
      socket.send(contentOf(next), port, host);
      next += 1;
    }
    if (waiting.size === 0) finish();
  };
  socket.on('message', (message) => {
    clearTimeout(timer);
    timer = setTimeout(finish, PATIENCE_MS);
    if (!waiting.delete(message.length) || !message.equals(contentOf(message.length))) {
      altered.push(message.length);
    } else {
      back += 1;
    }
    fill();
  });
  socket.bind(0, fill);
}

if (mode === 'serve') serve(Number(args[0]));
else probe(args[0], Number(args[1]), Number(args[2]));
