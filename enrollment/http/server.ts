import { randomUUID } from 'node:crypto'
import http from 'node:http'
import https from 'node:https'
import { type FastifyInstance, fastify } from 'fastify'
import { MusterError } from '#shared/errors'
import type { Log } from '#shared/log'
import { sendProblem } from './problem.ts'

/** What a listener shows and whom it believes, PEM. */
export interface TlsMaterial {
  /** Leaf and intermediate. */
  readonly certificate: string
  readonly key: string
  /** CA certificates to which client certificates must chain. */
  readonly clientCas: readonly string[]
}

export interface ListenerOptions {
  readonly name: string
  readonly host: string
  readonly port: number
  /** Null serves plain HTTP. */
  readonly tls: TlsMaterial | null
  readonly log: Log
  readonly limits?: Partial<ListenerLimits>
  register(app: FastifyInstance): void
  /** Told of every reply; the route is its pattern, `none` when there was none. */
  replied?(reply: { route: string; status: number; afterMs: number }): void
}

export interface Listener {
  /** New connections see the new certificate, open ones go on. */
  reload(tls: TlsMaterial): void
  stop(): Promise<void>
}

/** Authenticated encryption only; the plane's certificates are ECDSA. */
const CIPHERS = [
  'TLS_AES_256_GCM_SHA384',
  'TLS_CHACHA20_POLY1305_SHA256',
  'TLS_AES_128_GCM_SHA256',
  'ECDHE-ECDSA-AES256-GCM-SHA384',
  'ECDHE-ECDSA-CHACHA20-POLY1305',
  'ECDHE-ECDSA-AES128-GCM-SHA256',
].join(':')

/** What a client may take: times in ms, sizes in octets. */
export type ListenerLimits = Record<keyof typeof LIMITS, number>
export const LIMITS = Object.freeze({
  handshakeMs: 10_000,
  headersMs: 10_000,
  requestMs: 15_000,
  idleMs: 15_000,
  /** Deadlines of headers and requests are looked at this often. */
  checkEveryMs: 1_000,
  bodyOctets: 64 * 1024,
  headerOctets: 8 * 1024,
  connections: 4_096,
  /** A stop waits this long for replies in progress. */
  stopMs: 2_000,
})

function httpOptions(limits: ListenerLimits): http.ServerOptions {
  return {
    headersTimeout: limits.headersMs,
    requestTimeout: limits.requestMs,
    keepAliveTimeout: limits.idleMs,
    connectionsCheckingInterval: limits.checkEveryMs,
    maxHeaderSize: limits.headerOctets,
  }
}

/** Starts a listener. @throws MusterError port_taken */
export async function openListener(options: ListenerOptions): Promise<Listener> {
  const limits = { ...LIMITS, ...options.limits }
  const server = options.tls
    ? https.createServer({ ...httpOptions(limits), ...tlsOptions(options.tls, limits) })
    : http.createServer(httpOptions(limits))
  server.maxConnections = limits.connections
  const app = fastify({
    // Both kinds of server speak HTTP/1.1 to Fastify; its types know the plain one by default.
    serverFactory: (handler) => server.on('request', handler) as http.Server,
    logger: false,
    genReqId: () => randomUUID(),
    bodyLimit: limits.bodyOctets,
    exposeHeadRoutes: false,
    routerOptions: { maxParamLength: 256 },
    frameworkErrors: (error, request, reply) => sendProblem(error, { request, reply, log: options.log }),
  })
  app.removeContentTypeParser('text/plain') // JSON only; EST brings its own parser
  app.setErrorHandler((error, request, reply) => sendProblem(error, { request, reply, log: options.log }))
  app.setNotFoundHandler((request, reply) => {
    const missing = new MusterError(
      'not_found',
      `Cannot ${request.method} "${request.url.split('?')[0]}": there is no such route here`,
    )
    return sendProblem(missing, { request, reply, log: options.log })
  })
  if (options.replied) {
    app.addHook('onResponse', ({ routeOptions }, { statusCode: status, elapsedTime: afterMs }, done) => {
      options.replied?.({ route: routeOptions.url ?? 'none', status, afterMs })
      done()
    })
  }
  options.register(app)
  await listen(app, options)
  return {
    reload: (tls) => {
      if (server instanceof https.Server) server.setSecureContext(contextOptions(tls))
    },
    stop: () => stop(app, server),
  }
}

async function listen(app: FastifyInstance, { host, port, name }: ListenerOptions): Promise<void> {
  try {
    await app.listen({ host, port })
  } catch (cause) {
    await app.close()
    const { code } = cause as NodeJS.ErrnoException // listen fails with an errno exception
    if (code !== 'EADDRINUSE' && code !== 'EACCES') throw cause
    const why = code === 'EACCES' ? 'needs the rights of an administrator' : 'is taken by another process'
    throw new MusterError(
      'port_taken',
      `Cannot listen for ${name} on ${host}: port ${port} ${why}; fix: choose other ports with --port-base`,
      { cause, evidence: { port } },
    )
  }
}

/** Lets replies in progress finish, then closes what is left. */
async function stop(app: FastifyInstance, server: http.Server | https.Server): Promise<void> {
  const timer = setTimeout(() => server.closeAllConnections(), LIMITS.stopMs)
  await app.close()
  clearTimeout(timer)
}

function contextOptions({ certificate, key, clientCas }: TlsMaterial) {
  return { cert: certificate, key, ca: [...clientCas], ciphers: CIPHERS, minVersion: 'TLSv1.2' as const }
}

/**
 * Every client may finish the handshake: the routes decide who may do what, and a refused client learns why.
 * Silent handshakes end at the deadline (https destroys the socket).
 */
function tlsOptions(tls: TlsMaterial, limits: ListenerLimits): https.ServerOptions {
  return {
    ...contextOptions(tls),
    requestCert: true,
    rejectUnauthorized: false,
    handshakeTimeout: limits.handshakeMs,
  }
}
