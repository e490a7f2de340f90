/** Devices that come back the moment they are turned away, in a process of their own: `HammerOrder` is its first argument. */
import { connect as tcpConnect } from 'node:net'
import { connect } from 'node:tls'
import { generate } from 'mqtt-packet'
import { connectPacket } from './mqtt-clients.ts'

export interface HammerOrder {
  readonly port: number
  readonly ca: string
  readonly attempts: number
  /** Each device has an address of its own: `127.<network>.x.y`. */
  readonly network: number
  readonly devices: readonly { readonly id: string; readonly certificate: string; readonly key: string }[]
}

/** How attempts ended. Who is dropped hears nothing: before the handshake, or when its own time is over. */
export interface HammerCount {
  readonly type: 'hammered'
  readonly accepted: number
  readonly refused: number
  readonly busy: number
  readonly dropped: number
}

type Outcome = Exclude<keyof HammerCount, 'type'>

const OUTCOMES: Readonly<Record<number, Outcome>> = { 0: 'accepted', 3: 'busy', 5: 'refused' }
/** A broker that does not answer is left, ms. */
const PATIENCE_MS = 20_000

process.once('message', ({ port, ca, attempts, network, devices }: HammerOrder) => {
  const count = { accepted: 0, refused: 0, busy: 0, dropped: 0 }
  const hammer = async (device: HammerOrder['devices'][number], n: number) => {
    const localAddress = `127.${network}.${n >> 7}.${(n & 127) + 1}`
    for (let attempt = 0; attempt < attempts; attempt++) {
      count[await tryOnce({ port, ca, localAddress, ...device })]++
    }
  }
  void Promise.all(devices.map(hammer)).then(() => {
    process.send?.({ type: 'hammered', ...count } satisfies HammerCount)
  })
})
process.once('disconnect', () => process.exit())
process.send?.({ type: 'ready' })

interface Attempt {
  readonly port: number
  readonly ca: string
  readonly localAddress: string
  readonly id: string
  readonly certificate: string
  readonly key: string
}

function tryOnce({ port, ca, localAddress, id, certificate: cert, key }: Attempt): Promise<Outcome> {
  const { promise, resolve } = Promise.withResolvers<Outcome>()
  const wire = tcpConnect({ host: '127.0.0.1', port, localAddress })
  wire.on('error', () => socket.destroy())
  const socket = connect({ socket: wire, ca, cert, key, servername: 'localhost' })
  const timer = setTimeout(() => socket.destroy(), PATIENCE_MS)
  let outcome: Outcome = 'dropped'
  socket.once('secureConnect', () => socket.write(generate(connectPacket({ clientId: id }))))
  // CONNACK: its fixed header, flags, return code (MQTT 3.1.1 section 3.2).
  socket.once('data', (chunk: Buffer) => {
    outcome = OUTCOMES[chunk[3] ?? -1] ?? 'dropped'
    socket.destroy()
  })
  socket.on('error', () => {})
  socket.once('close', () => {
    clearTimeout(timer)
    resolve(outcome)
  })
  return promise
}
