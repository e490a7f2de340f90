import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { MusterError } from './errors.ts'
import type { Log } from './log.ts'
import { type Metrics, measureProcess } from './metrics.ts'

/** Where the metrics are; they are for one machine unless somebody says otherwise. */
export interface MetricsAddress {
  readonly host: string
  /** 0 for any. */
  readonly port: number
}

export interface MetricsListener {
  readonly port: number
  stop(): Promise<void>
}

/** Measures the process too, and serves all of it. @throws MusterError port_taken */
export async function serveMetrics(
  metrics: Metrics,
  { address, log }: { readonly address: MetricsAddress; readonly log: Log },
): Promise<MetricsListener> {
  const stopMeasuring = measureProcess(metrics)
  const listener = await openMetricsListener(metrics, { ...address, log })
  log.info({ host: address.host, port: listener.port }, 'metrics are served')
  return {
    port: listener.port,
    async stop() {
      stopMeasuring()
      await listener.stop()
    },
  }
}

/** What a scraper may take: times in ms, sizes in octets. */
const LIMITS = Object.freeze({
  headersMs: 5_000,
  requestMs: 5_000,
  idleMs: 5_000,
  checkEveryMs: 1_000,
  headerOctets: 4 * 1024,
  connections: 32,
})

/**
 * Plain HTTP, for a scraper: `GET /metrics` and `GET /healthz`, nothing else. It reads no body, and nothing that it
 * says is secret; but it says how much goes on, so it binds where it is told to.
 * @throws MusterError port_taken
 */
export async function openMetricsListener(
  metrics: Metrics,
  { host, port, log }: MetricsAddress & { readonly log: Log },
): Promise<MetricsListener> {
  const server = createServer(
    {
      headersTimeout: LIMITS.headersMs,
      requestTimeout: LIMITS.requestMs,
      keepAliveTimeout: LIMITS.idleMs,
      connectionsCheckingInterval: LIMITS.checkEveryMs,
      maxHeaderSize: LIMITS.headerOctets,
    },
    (request, reply) => {
      answer(metrics, { request, reply }).catch((error: unknown) => {
        log.error({ err: error }, 'cannot read the metrics')
        if (!reply.headersSent) send(reply, { status: 500, text: 'the metrics cannot be read\n' })
        else reply.destroy()
      })
    },
  )
  server.maxConnections = LIMITS.connections
  server.listen(port, host)
  await listening(server, { host, port })
  return {
    port: (server.address() as AddressInfo).port, // listening on TCP
    async stop() {
      const closed = once(server, 'close')
      server.close()
      server.closeAllConnections()
      await closed
    },
  }
}

interface Exchange {
  readonly request: IncomingMessage
  readonly reply: ServerResponse
}

async function answer(metrics: Metrics, { request, reply }: Exchange): Promise<void> {
  const isMetrics = request.url === '/metrics'
  if (!isMetrics && request.url !== '/healthz') return send(reply, { status: 404, text: 'not found\n' })
  if (request.method !== 'GET') return send(reply, { status: 405, text: 'GET only\n', allow: 'GET' })
  if (!isMetrics) return send(reply, { status: 200, text: 'ok\n' })
  send(reply, { status: 200, text: await metrics.text(), type: metrics.contentType })
}

/** A request that brings a body loses its connection: the body is never read. */
function send(
  reply: ServerResponse,
  { status, text, type = 'text/plain; charset=utf-8', allow }: Reply,
): void {
  const { headers } = reply.req
  const hasBody = headers['content-length'] !== undefined || headers['transfer-encoding'] !== undefined
  reply.writeHead(status, {
    'content-type': type,
    'cache-control': 'no-store',
    ...(allow === undefined ? {} : { allow }),
    ...(hasBody || status >= 400 ? { connection: 'close' } : {}),
  })
  reply.end(text, () => {
    if (hasBody) reply.req.destroy()
  })
}

interface Reply {
  readonly status: number
  readonly text: string
  readonly type?: string
  readonly allow?: string
}

async function listening(server: ReturnType<typeof createServer>, at: MetricsAddress): Promise<void> {
  try {
    await once(server, 'listening')
  } catch (cause) {
    throw new MusterError(
      'port_taken',
      `Cannot listen for metrics on ${at.host}:${at.port}: ${(cause as NodeJS.ErrnoException).code}; fix: choose another port with --metrics-port`, // what net.Server emits
      { cause },
    )
  }
}
