/** Clients that take everything that the limits of a broker give them, and come back for more. */
import { readFileSync } from 'node:fs'
import { connect as tcpConnect } from 'node:net'
import { connect as tlsConnect } from 'node:tls'
import mqttPacket, { type Packet } from 'mqtt-packet'
import type { TestDevice } from './enrollment.ts'
import { connectPacket } from './mqtt-clients.ts'

export interface Place {
  readonly port: number
  readonly ca: string
  readonly signal: AbortSignal
}

/** Octets of a message. */
const PAYLOAD = Buffer.alloc(1_000, 'x')
const LARGE = Buffer.alloc(100_000, 'x')
/** Messages of the service that wait for their PUBACK. */
const WINDOW = 10
const TOPICS = 150
/** Time to close before the next of a kind comes, ms. */
const AGAIN_MS = 50
/** How long a slow reader stays, ms: longer than its buffers last. */
const SLOW_MS = 10_000

/** Opens one after the other, until the signal says stop; `open` resolves when its connection has closed. */
export async function again(signal: AbortSignal, open: () => Promise<void>): Promise<number> {
  let times = 0
  while (!signal.aborted) {
    await open()
    times++
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS))
  }
  return times
}

/** Connects and never says a word. */
export function silent({ port, signal }: Place): Promise<void> {
  const socket = tcpConnect(port, '127.0.0.1')
  return ended(socket, signal)
}

/** Says the first half of its ClientHello. */
export function halfOpen({ port, signal }: Place): Promise<void> {
  const socket = tcpConnect(port, '127.0.0.1', () =>
    socket.write(Buffer.from('1603010200010001fc0303', 'hex')),
  )
  return ended(socket, signal)
}

/** Subscribes to what is sent to it, and reads nothing of it: not even that it was cut off, so it comes back by itself. */
export function slow(place: Place, device: TestDevice): Promise<void> {
  return speak(place, device, {
    clean: true,
    entered(send, socket) {
      send(subscribe(device))
      socket.once('data', () => {
        socket.pause()
        setTimeout(() => socket.destroy(), SLOW_MS)
      })
    },
  })
}

/** Subscribes with a session, and is away from then on: its queue fills. */
export function away(place: Place, device: TestDevice): Promise<void> {
  return speak(place, device, {
    clean: false,
    entered(send, socket) {
      send(subscribe(device))
      socket.once('data', () => socket.destroy())
    },
  })
}

/** Publishes more than its rate, and retains more than it may. */
export function greedy(place: Place, device: TestDevice): Promise<void> {
  return speak(place, device, {
    clean: true,
    entered(send) {
      for (let n = 0; n < TOPICS; n++) {
        const topic = `devices/${device.id}/state/${n}`
        send({ cmd: 'publish', topic, payload: PAYLOAD, qos: 1, messageId: n + 1, retain: true, dup: false })
      }
    },
  })
}

/**
 * Commands as fast as they are acknowledged: to those who are away, and large ones of QoS 0 to those who read slowly, so
 * that the buffers of kernel and broker fill.
 */
export function commanding(
  place: Place,
  service: TestDevice,
  targets: { readonly away: readonly string[]; readonly slow: readonly string[] },
): Promise<void> {
  let n = 0
  const to = (id: string | undefined) => `devices/${id}/commands/x`
  const order = (send: Send) => {
    const [away, slow] = [targets.away[n % targets.away.length], targets.slow[n % targets.slow.length]]
    const messageId = (n++ % 60_000) + 1
    send({ cmd: 'publish', topic: to(slow), payload: LARGE, qos: 0, retain: false, dup: false })
    send({ cmd: 'publish', topic: to(away), payload: PAYLOAD, qos: 1, messageId, retain: false, dup: false })
  }
  return speak(place, service, {
    clean: true,
    entered(send) {
      for (let under = 0; under < WINDOW; under++) order(send)
    },
    heard(send, { cmd }) {
      if (cmd === 'puback') order(send)
    },
  })
}

type Send = (packet: Packet) => void
type Pair = Pick<TestDevice, 'id' | 'certificate' | 'key'>

function subscribe({ id }: Pair): Packet {
  return { cmd: 'subscribe', messageId: 1, subscriptions: [{ topic: `devices/${id}/commands/#`, qos: 1 }] }
}

function speak(
  { port, ca, signal }: Place,
  { id, certificate: cert, key }: Pair,
  how: {
    readonly clean: boolean
    entered(send: Send, socket: ReturnType<typeof tlsConnect>): void
    heard?(send: Send, packet: Packet): void
  },
): Promise<void> {
  const socket = tlsConnect({ host: '127.0.0.1', port, ca, cert, key, servername: 'localhost' })
  const send = (packet: Packet) => {
    if (!socket.destroyed) socket.write(mqttPacket.generate(packet))
  }
  const parser = mqttPacket.parser()
  parser.on('packet', (packet) => {
    if (packet.cmd === 'connack' && packet.returnCode === 0) how.entered(send, socket)
    else how.heard?.(send, packet)
  })
  parser.on('error', () => socket.destroy())
  socket.on('data', (chunk) => parser.parse(chunk))
  socket.once('secureConnect', () => send(connectPacket({ clientId: id, clean: how.clean })))
  return ended(socket, signal)
}

function ended(
  socket: {
    once(event: 'close', heard: () => void): unknown
    on(event: 'error', heard: () => void): unknown
    destroy(): unknown
  },
  signal: AbortSignal,
): Promise<void> {
  const stop = () => void socket.destroy()
  if (signal.aborted) stop()
  else signal.addEventListener('abort', stop, { once: true })
  socket.on('error', () => {}) // `close` follows
  return new Promise((resolve) => {
    socket.once('close', () => {
      signal.removeEventListener('abort', stop)
      resolve()
    })
  })
}

/** Resident memory of a process, MiB (proc(5): VmRSS). */
export function residentMiB(pid: number): number {
  const [, kibibytes] = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? []
  return Math.round(Number(kibibytes) / 1024)
}
