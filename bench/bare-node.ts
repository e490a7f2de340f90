import { readFileSync } from 'node:fs'
import { createServer } from 'node:tls'

/**
 * What Node itself takes for a connection: TLS that asks for a certificate and verifies it, and the same four octets
 * of CONNACK to whatever comes first. It reads no packet and keeps nothing. Says over IPC when it listens.
 */
const [port, certificate = '', key = '', ca = ''] = process.argv.slice(2)
/** [MQTT-3.2.2] session not present, connection accepted. */
const ACCEPTED = Buffer.from([0x20, 0x02, 0x00, 0x00])

const server = createServer({
  cert: readFileSync(certificate),
  key: readFileSync(key),
  ca: readFileSync(ca),
  requestCert: true,
  noDelay: true,
})
server.on('secureConnection', (socket) => {
  socket.on('error', () => socket.destroy())
  socket.once('data', () => {
    socket.write(ACCEPTED)
    socket.resume()
  })
})
server.on('tlsClientError', (_, socket) => socket.destroy())
server.listen(Number(port), '127.0.0.1', () => process.send?.({ type: 'ready' }))
