// A UDP port of a host of the laboratory, worked from a test: node udp-port.mjs PORT
// Standard input, one line each: HOST PORT HEX, sends it. Standard output: `ready`, then HOST PORT HEX
// for each datagram that came in.
import { createSocket } from 'node:dgram';
import { createInterface } from 'node:readline';

const socket = createSocket({ type: 'udp4', recvBufferSize: 1 << 22 });
socket.on('message', (message, from) => {
  console.log(`${from.address} ${from.port} ${message.toString('hex')}`);
});
socket.bind(Number(process.argv[2]), '0.0.0.0', () => console.log('ready'));
createInterface({ input: process.stdin })
  .on('line', (line) => {
    const [host, port, hex] = line.split(' ');
    socket.send(Buffer.from(hex ?? '', 'hex'), Number(port), host);
  })
  .on('close', () => socket.close());
