import type { buildConnector } from 'undici'
import { isMusterError } from '#shared/errors'
import { type JsonClient, openJsonClient } from '#shared/json-client'
import type { IssuedPair } from './credential.ts'
import type { DeviceTime } from './device-time.ts'
import type { Validity } from './server-chain.ts'
import { openServerSocket } from './server-socket.ts'

/** What a device believes: roots, PEM, and what time it is. */
export interface Believed {
  readonly roots: string
  readonly time: DeviceTime
}

/** Who asks, and where. */
export interface Asking {
  /** Base URL of the enrollment listener. */
  readonly url: string
  readonly trust: Believed
  /** Presented when there is one. */
  readonly pair?: IssuedPair
}

type Judge = (host: string, validity: Validity) => void

/** From the first SYN to the end of the handshake, ms. */
const CONNECT_DEADLINE_MS = 10_000

/** On one connection, as a device would, which asks once in weeks. The answer tells the time, too. */
export async function askOnce<Reply>(
  asking: Asking,
  work: (client: JsonClient) => Promise<Reply>,
): Promise<Reply> {
  const { time } = asking.trust
  const { reply, heard } = await exchange(asking, { work, judge: (host, of) => time.judge(host, of) })
  try {
    heard()
  } catch (error) {
    if (!isMusterError(error, 'unreachable')) throw error // the answer is good all the same
  }
  return reply
}

/**
 * Takes the time from whoever proves to be the service, by a chain that is good at the time that it says: here the
 * device's own idea of the time does not count, but for its floor. Nothing is said of the device.
 * @throws MusterError unreachable
 */
export async function askTime({ url, trust }: Asking): Promise<void> {
  const work = (client: JsonClient) => client.send('GET', '/v1/ca')
  const { heard } = await exchange({ url, trust }, { work, judge: () => {} })
  heard()
}

/** @returns with the reply, what takes the time from it */
async function exchange<Reply>(
  { url, trust, pair }: Asking,
  of: { work: (client: JsonClient) => Promise<Reply>; judge: Judge },
): Promise<{ reply: Reply; heard: () => void }> {
  let date = Number.NaN
  let proven: { host: string; validity: Validity } | undefined
  const connect: buildConnector.connector = (at, done) => {
    const host = at.hostname.replace(/^\[|\]$/g, '') // an IPv6 address is in brackets in a URL only
    const { certificate, key } = pair ?? {}
    const options = { host, port: Number(at.port || 443), ca: trust.roots, certificate, key }
    openServerSocket({ ...options, protocol: 'http/1.1', deadlineMs: CONNECT_DEADLINE_MS })
      .then(({ socket, validity }) => {
        socket.on('error', () => {}) // undici hears of the close
        try {
          of.judge(host, validity)
        } catch (error) {
          socket.destroy()
          throw error
        }
        proven = { host, validity }
        return socket
      })
      .then(
        (socket) => done(null, socket),
        (error: Error) => done(error, null),
      )
  }
  const dated = (at: number) => {
    date = at
  }
  const client = openJsonClient({ url, ca: trust.roots, connect, dated })
  try {
    const reply = await of.work(client)
    return { reply, heard: () => proven && trust.time.hear(date, proven) }
  } finally {
    await client.close()
  }
}
