// A device on mqtt.js: prints each message that it gets and echoes it, both at the QoS it is told.
// mqtt-js-device.mjs <port> <directory with root.pem, device.pem, device.key> <id> <qos>
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { connect } from 'mqtt'

const [port, directory, id, level] = process.argv.slice(2)
const qos = Number(level)
const client = connect({
  protocol: 'mqtts',
  host: 'localhost',
  port: Number(port),
  ca: readFileSync(join(directory, 'root.pem')),
  cert: readFileSync(join(directory, 'device.pem')),
  key: readFileSync(join(directory, 'device.key')),
  clientId: id,
  clean: false,
  reconnectPeriod: 200,
})
client.on('connect', () => client.subscribe(`devices/${id}/commands/#`, { qos }))
client.on('message', (_, payload, packet) => {
  console.log(`got ${payload} at ${packet.qos}`)
  client.publish(`devices/${id}/telemetry`, payload, { qos })
})
client.on('error', ({ message }) => console.error(message))
