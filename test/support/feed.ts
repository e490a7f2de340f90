/**
 * A stand-in for the registry's side of the change stream, over real mTLS and with the schemas of `shared/feed.ts`:
 * it refuses what they refuse, and sends nothing that they do not allow. It counts a batch of reports once.
 */
import { once } from 'node:events'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { createServer, type Server } from 'node:https'
import type { AddressInfo, Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import { Compile } from 'typebox/compile'
import { type Change, type Cursor, FeedMessage, type Report, ReportBatch } from '#shared/feed'
import type { TestAuthority, TestIdentity } from './pki.ts'

const messageSchema = Compile(FeedMessage)
const batchSchema = Compile(ReportBatch)

export interface FeedOptions {
  readonly authority: TestAuthority
  readonly server: TestIdentity
  readonly epoch?: string
  /** Port to listen on, to come back where an earlier one was. */
  readonly port?: number
  now?(): number
}

interface Logged {
  readonly position: number
  readonly at: number
  readonly change: Change
}

/** How the next stream or report is treated. */
export type Fault = 'none' | 'refuse' | 'lose-reply'

export class TestFeed {
  epoch: string
  /** Streams that were asked for, oldest first: the cursor in the query, or null. */
  readonly asked: (Cursor | null)[] = []
  /** Batches that arrived, repetitions included. */
  readonly batches: ReportBatch[] = []
  /** Reports that were counted: each batch once. */
  readonly reports: Report[] = []
  /** Sends only so many changes of a snapshot, then cuts the stream. */
  cutSnapshotAfter = Number.POSITIVE_INFINITY
  streamFault: Fault = 'none'
  reportFault: Fault = 'none'
  readonly #server: Server
  readonly #now: () => number
  readonly #log: Logged[] = []
  readonly #streams = new Set<ServerResponse>()
  readonly #taken = new Set<string>()
  #waiting: { holds(): boolean; resolve(): void }[] = []
  #before: readonly Change[] = []

  constructor(server: Server, options: FeedOptions) {
    this.#server = server
    this.epoch = options.epoch ?? 'epoch-1'
    this.#now = options.now ?? Date.now
    server.on('request', (request, response) => void this.#answer(request, response))
  }

  get url(): string {
    return `https://localhost:${this.port}`
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port // listening on TCP
  }

  /** The newest position. */
  position(): number {
    return this.#log.length
  }

  /** Appends changes and sends them down every open stream; returns the position of the last. */
  commit(...changes: Change[]): number {
    for (const change of changes) {
      const logged = { position: this.#log.length + 1, at: this.#now(), change }
      this.#log.push(logged)
      for (const stream of this.#streams) write(stream, { type: 'change', ...logged })
    }
    return this.#log.length
  }

  /** A restore: another epoch, whose state is what these changes say. */
  restore(epoch: string, changes: readonly Change[]): void {
    this.epoch = epoch
    this.#before = changes
    this.#log.length = 0
    this.cut()
  }

  alive(): void {
    for (const stream of this.#streams) this.#writeAlive(stream)
  }

  /** Sends bytes as they are down every stream. */
  sendRaw(bytes: string | Uint8Array): void {
    for (const stream of this.#streams) stream.write(bytes)
  }

  /** Sends messages down every stream again, or out of order. */
  sendAgain(from: number, to: number): void {
    for (const logged of this.#log.slice(from - 1, to)) {
      for (const stream of this.#streams) write(stream, { type: 'change', ...logged })
    }
  }

  cut(): void {
    for (const stream of this.#streams) stream.destroy()
  }

  streams(): number {
    return this.#streams.size
  }

  /** Resolves when the condition holds; looked at after each request and each line of a report. Fails after 10 s. */
  async until(what: string, holds: () => boolean): Promise<void> {
    if (holds()) return
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const timer = setTimeout(() => reject(new Error(`Not within 10 s: ${what}`)), 10_000)
    this.#waiting.push({ holds, resolve })
    await promise.finally(() => clearTimeout(timer))
  }

  async close(): Promise<void> {
    this.cut()
    this.#server.close()
    this.#server.closeAllConnections()
    if (this.#server.listening) await once(this.#server, 'close')
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? '/', this.url)
    if (!this.#isBroker(request.socket)) refuse(response, 403, 'forbidden')
    else if (url.pathname === '/v1/feed' && this.streamFault === 'refuse')
      refuse(response, 503, 'unavailable')
    else if (url.pathname === '/v1/feed') this.#openStream(url, response)
    else if (url.pathname === '/v1/feed/reports') await this.#takeReports(request, response)
    else response.writeHead(404).end()
    this.#look()
  }

  /** Chains end at the root, so a device gets through the handshake; its URI says what it is. */
  #isBroker(socket: Socket): boolean {
    const certificate = (socket as TLSSocket).getPeerX509Certificate() // a connection of an https server
    return /URI:spiffe:\/\/[^/]+\/broker\//.test(certificate?.subjectAltName ?? '')
  }

  #openStream(url: URL, response: ServerResponse): void {
    const [epoch, position] = [url.searchParams.get('epoch'), Number(url.searchParams.get('position'))]
    const cursor = epoch === null ? null : { epoch, position }
    this.asked.push(cursor)
    response.writeHead(200, { 'content-type': 'application/x-ndjson' })
    response.flushHeaders()
    response.on('error', () => {})
    if (cursor?.epoch !== this.epoch || cursor.position > this.position()) {
      if (!this.#writeSnapshot(response)) return
    } else {
      for (const logged of this.#log.slice(cursor.position)) write(response, { type: 'change', ...logged })
    }
    this.#streams.add(response)
    response.once('close', () => {
      this.#streams.delete(response)
      this.#look()
    })
    this.#writeAlive(response)
  }

  /** False when it was cut. */
  #writeSnapshot(response: ServerResponse): boolean {
    const cursor = { epoch: this.epoch, position: this.position() }
    const changes = [...this.#before, ...this.#log.map(({ change }) => change)]
    write(response, { type: 'snapshot', ...cursor })
    for (const change of changes.slice(0, this.cutSnapshotAfter)) {
      write(response, { type: 'change', position: cursor.position, at: this.#now(), change })
    }
    if (changes.length > this.cutSnapshotAfter) {
      response.write('', () => response.destroy())
      return false
    }
    write(response, { type: 'snapshot-end', ...cursor })
    return true
  }

  #writeAlive(response: ServerResponse): void {
    write(response, { type: 'alive', epoch: this.epoch, position: this.position(), at: this.#now() })
  }

  async #takeReports(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const batch: unknown = JSON.parse((await request.toArray()).join(''))
    if (!batchSchema.Check(batch)) return refuse(response, 400, 'invalid_request')
    if (this.reportFault === 'refuse') return refuse(response, 503, 'unavailable')
    this.batches.push(batch)
    const name = `${batch.boot} ${batch.sequence}`
    if (!this.#taken.has(name)) this.reports.push(...batch.reports)
    this.#taken.add(name)
    if (this.reportFault === 'lose-reply') response.destroy()
    else response.end(JSON.stringify({ sequence: batch.sequence }))
  }

  #look(): void {
    this.#waiting = this.#waiting.filter(({ holds, resolve }) => {
      if (!holds()) return true
      resolve()
      return false
    })
  }
}

/** Serves with the server certificate, to clients with one of the infrastructure CA. */
export async function openTestFeed(options: FeedOptions): Promise<TestFeed> {
  const { authority, server: identity } = options
  const server = createServer({
    cert: identity.chainPem,
    key: identity.keyPem,
    ca: [authority.rootPem, authority.infrastructure.pem],
    requestCert: true,
    rejectUnauthorized: true,
  })
  const feed = new TestFeed(server, options)
  server.listen(options.port ?? 0, '127.0.0.1')
  await once(server, 'listening')
  return feed
}

function write(response: ServerResponse, message: FeedMessage): void {
  if (!messageSchema.Check(message)) throw new TypeError(`Not in the schema: ${JSON.stringify(message)}`)
  response.write(`${JSON.stringify(message)}\n`)
}

function refuse(response: ServerResponse, status: number, code: string): void {
  const problem = { type: 'about:blank', title: code, status, detail: `The test says ${code}.`, code }
  response.writeHead(status, { 'content-type': 'application/problem+json' }).end(JSON.stringify(problem))
}
