import { createHmac, generateKeyPairSync, type KeyObject, randomBytes, scryptSync, sign } from 'node:crypto'
import t, { type Test } from 'tap'
import type { SecondFactor } from '#shared/second-factor'
import { openTokenJudge } from '../../broker/judge/json-web-token.ts'
import { openSecondFactors } from '../../broker/judge/second-factor.ts'
import { openTestBroker, type TestBroker } from '../support/broker.ts'
import { openRaw } from '../support/mqtt-clients.ts'
import { type TestIdentity, testAuthority } from '../support/pki.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

const PASSWORD = randomBytes(32).toString('base64url')

function passwordFactor(id = 'f-1', password = PASSWORD): SecondFactor {
  const salt = randomBytes(16)
  const hash = scryptSync(password, salt, 32, { N: 1_024, r: 8, p: 1 })
  const text = { salt: salt.toString('base64url'), hash: hash.toString('base64url') }
  return { id, kind: 'password', ...text, cost: 1_024 }
}

const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const JWKS = { keys: [{ ...publicKey.export({ format: 'jwk' }), kid: 'k1', alg: 'ES256', use: 'sig' }] }

function tokenFactor(more: Partial<Extract<SecondFactor, { kind: 'jwt' }>> = {}): SecondFactor {
  const rules = { issuer: 'https://id.example', audience: 'muster', algorithms: ['ES256' as const] }
  return { id: 'f-2', kind: 'jwt', ...rules, jwks: JSON.stringify(JWKS), ...more }
}

const encode = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url')
const inAnHour = () => Math.floor(Date.now() / 1000) + 3_600

interface Forged {
  readonly header?: object
  readonly claims?: object
  signature?(input: string): Buffer
}

/** A token that is good but for what is changed. */
function token({ header, claims, signature }: Forged = {}, key: KeyObject = privateKey): string {
  const head = { alg: 'ES256', kid: 'k1', typ: 'JWT', ...header }
  const body = { iss: 'https://id.example', aud: 'muster', sub: 'dev-1', exp: inAnHour(), ...claims }
  const input = `${encode(head)}.${encode(body)}`
  const made = signature?.(input) ?? sign('sha256', Buffer.from(input), { key, dsaEncoding: 'ieee-p1363' })
  return `${input}.${made.toString('base64url')}`
}

const spkiPem = publicKey.export({ format: 'pem', type: 'spki' })
const hmac = (secret: string | Buffer) => (input: string) =>
  createHmac('sha256', secret).update(input).digest()
const stranger = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey

/** Passwords of CONNECT that are no proof for the token that is asked for, with what is said of each. */
const HOSTILE_TOKENS: Record<string, [string, RegExp]> = {
  'alg none': [token({ header: { alg: 'none' }, signature: () => Buffer.alloc(0) }), /alg/],
  'HS256 with the public key as PEM': [
    token({ header: { alg: 'HS256' }, signature: hmac(spkiPem as string) }),
    /alg/,
  ],
  'HS256 with the key set': [
    token({ header: { alg: 'HS256' }, signature: hmac(JSON.stringify(JWKS)) }),
    /alg/,
  ],
  'an algorithm that is not on the list': [token({ header: { alg: 'ES384' } }), /alg/],
  'another key': [token({}, stranger), /signature/],
  'a key that the token brings': [
    token({ header: { jwk: publicKey.export({ format: 'jwk' }), kid: 'k9' } }, stranger),
    /kid/,
  ],
  'no kid': [token({ header: { kid: undefined } }), /kid/],
  'an unknown kid': [token({ header: { kid: 'k2' } }), /kid/],
  'a critical extension': [token({ header: { crit: ['x'], x: 1 } }), /malformed/],
  'an expired one': [token({ claims: { exp: inAnHour() - 3_700 } }), /expired/],
  'one without an end': [token({ claims: { exp: undefined } }), /exp/],
  'one that is not valid yet': [token({ claims: { nbf: inAnHour() } }), /nbf/],
  'that of another device': [token({ claims: { sub: 'dev-2' } }), /sub/],
  'no subject': [token({ claims: { sub: undefined } }), /sub/],
  'another issuer': [token({ claims: { iss: 'https://id.example.evil' } }), /iss/],
  'another audience': [token({ claims: { aud: ['other'] } }), /aud/],
  'a cut signature': [token().slice(0, -4), /signature|malformed/],
  'no token': ['hello', /malformed/],
  'an encrypted one': ['a.b.c.d.e', /malformed/],
  'too many dots': ['.'.repeat(1_000), /malformed/],
  nothing: ['', /missing/],
}

async function open(t: Test, factor: SecondFactor): Promise<{ broker: TestBroker; device: TestIdentity }> {
  const broker = await openTestBroker({ authority })
  t.teardown(() => broker.close())
  const device = await broker.enroll('dev-1')
  await ask(broker, device, factor)
  return { broker, device }
}

/** The fleet asks for the factor from now on. */
async function ask(broker: TestBroker, device: TestIdentity, factor: SecondFactor): Promise<void> {
  const record = broker.replica.records.get(device.fingerprint)
  if (record !== undefined) broker.replica.put({ ...record, fleet: { ...record.fleet, factor } })
}

async function come(broker: TestBroker, device: TestIdentity, password?: string | Buffer) {
  const raw = await openRaw(broker, device)
  const credentials =
    password === undefined ? {} : { username: 'whoever', password: Buffer.from(password as string) }
  const { returnCode } = await raw.connect({ clientId: device.id, ...credentials })
  return { raw, returnCode }
}

t.test(
  'a fleet that asks for a password lets in who brings certificate and password, and nobody else',
  async (t) => {
    const { broker, device } = await open(t, passwordFactor())
    for (const wrong of [undefined, '', 'guess', `${PASSWORD}x`, PASSWORD.slice(0, -1), 'x'.repeat(3_000)]) {
      const { raw, returnCode } = await come(broker, device, wrong)
      t.equal(returnCode, 5, `${wrong}`.slice(0, 20))
      raw.socket.destroy()
    }
    t.same(
      broker.refusals('R-FACTOR').map(({ evidence }) => evidence.fault),
      ['missing', 'missing', 'wrong', 'wrong', 'wrong', 'wrong'],
    )
    t.notMatch(JSON.stringify(broker.reports) + broker.logged(), PASSWORD)
    for (let i = 0; i < 2; i++) {
      const { raw, returnCode } = await come(broker, device, PASSWORD)
      t.equal(returnCode, 0)
      raw.socket.destroy()
    }
    const thief = await openRaw(broker, {})
    t.equal(
      (await thief.connect({ clientId: 'dev-1', username: 'x', password: Buffer.from(PASSWORD) })).returnCode,
      5,
    )
    thief.socket.destroy()
    const other = await broker.enroll('dev-2')
    t.equal((await come(broker, other)).returnCode, 0, 'one whose fleet asks for nothing')
  },
)

t.test('what is asked for may change while it is being proved: the old answer is no proof', async (t) => {
  const { broker, device } = await open(t, passwordFactor())
  let reads = 0
  broker.replica.onRead = () => {
    // Admission, whether a proof is asked for, the judgement of CONNECT, what is asked for, what is proved: the next one
    // comes after the proof.
    if (++reads === 6) void ask(broker, device, passwordFactor('f-9', 'another'))
  }
  const { raw, returnCode } = await come(broker, device, PASSWORD)
  broker.replica.onRead = () => {}
  t.equal(returnCode, 5)
  t.match(broker.refusals('R-FACTOR'), [{ evidence: { fault: 'changed' } }])
  raw.socket.destroy()
})

t.test('a device that is revoked while its password is looked at does not come in', async (t) => {
  const { broker, device } = await open(t, passwordFactor())
  let reads = 0
  broker.replica.onRead = () => {
    if (++reads === 5) void broker.revoke(device)
  }
  const raw = await openRaw(broker, device)
  raw.send({
    ...{
      cmd: 'connect',
      protocolId: 'MQTT',
      protocolVersion: 4,
      clean: true,
      clientId: 'dev-1',
      keepalive: 60,
    },
    ...{ username: 'x', password: Buffer.from(PASSWORD) },
  })
  await raw.closed
  t.equal(raw.octets.toString('hex').startsWith('20020000'), false)
  t.equal(broker.sessions.count(), 0)
})

t.test(
  'a fleet that asks for a token takes one that is current, for this device, by a key that is known',
  async (t) => {
    const { broker, device } = await open(t, tokenFactor())
    for (const [name, [password, fault]] of Object.entries(HOSTILE_TOKENS)) {
      const before = broker.refusals('R-FACTOR').length
      const { raw, returnCode } = await come(broker, device, password)
      t.equal(returnCode, 5, name)
      t.match(broker.refusals('R-FACTOR')[before]?.evidence, { factor: 'jwt', fault }, name)
      raw.socket.destroy()
    }
    const { raw, returnCode } = await come(broker, device, token())
    t.equal(returnCode, 0)
    raw.socket.destroy()
  },
)

t.test('a session that is kept begins when the factor has been proved, and is new once', async (t) => {
  const { broker, device } = await open(t, passwordFactor())
  const came: unknown[] = []
  for (const secret of ['wrong', PASSWORD, PASSWORD]) {
    const raw = await openRaw(broker, device)
    const credentials = { username: 'whoever', password: Buffer.from(secret) }
    const connack = await raw.connect({ clientId: device.id, clean: false, ...credentials })
    came.push([connack.returnCode, connack.sessionPresent])
    raw.socket.destroy()
    await raw.closed
  }
  t.same(came, [
    [5, false],
    [0, false],
    [0, true],
  ])
})

t.test('a session ends with its token', async (t) => {
  const { broker, device } = await open(t, tokenFactor())
  const { raw, returnCode } = await come(
    broker,
    device,
    token({ claims: { exp: Math.floor(Date.now() / 1000) + 2 } }),
  )
  t.equal(returnCode, 0)
  await raw.closed
  t.match(await broker.report('disconnected'), { reason: 'factor' })
})

const good = { factor: tokenFactor({ url: 'https://id.example/keys' }), device: 'dev-1' }
const remote = () => {
  const { jwks: _, ...factor } = good.factor as Extract<SecondFactor, { kind: 'jwt' }> // made above
  return { ...good, factor }
}

t.test(
  'keys of a URL are fetched once, anew after a while or for an unknown kid, and not used when they are stale',
  async (t) => {
    let now = Date.now()
    let fetched = 0
    let isUp = true
    const judge = openTokenJudge({
      now: () => now,
      fetch: async () => {
        fetched++
        if (!isUp) throw new Error('down')
        return new Response(JSON.stringify(JWKS))
      },
    })
    const long = token({ claims: { exp: inAnHour() + 200_000 } })
    await Promise.all(Array.from({ length: 50 }, () => judge.judge(long, remote())))
    t.equal(fetched, 1, 'however many ask at once')
    for (let i = 0; i < 50; i++) {
      await t.rejects(judge.judge(token({ header: { kid: `k-${i}` } }), remote()), { message: 'kid' })
    }
    t.equal(fetched, 1, 'unknown kids do not make us fetch without a pause')
    now += 31_000
    await t.rejects(judge.judge(token({ header: { kid: 'k-x' } }), remote()), { message: 'kid' })
    t.equal(fetched, 2)
    isUp = false
    now += 3_600_000
    await judge.judge(long, remote())
    t.equal(fetched, 3, 'what is there goes on while the URL is down')
    now += 86_400_000
    await t.rejects(judge.judge(long, remote()), { message: 'keys' })
    isUp = true
    now += 31_000
    await judge.judge(long, remote())
    now -= 2 * 86_400_000
    const before = fetched
    await judge.judge(long, remote())
    t.equal(fetched, before + 1, 'a clock that is set back does not keep a key that was withdrawn')
    isUp = false
    now += 90_000_000
    await t.rejects(judge.judge(long, remote()), { message: 'keys' }, 'nor for longer than any other')
  },
)

t.test('keys that are too long, no keys, or behind a redirection are none', async (t) => {
  const answers: [RegExp, () => Response][] = [
    [/too long/, () => new Response('x'.repeat(70_000))],
    [/JSON Web Key Set/, () => new Response('{"keys": 1}')],
    [/status 500/, () => new Response('no', { status: 500 })],
    [
      /ECONNREFUSED/,
      () => {
        throw new TypeError('fetch failed', { cause: { code: 'ECONNREFUSED' } })
      },
    ],
  ]
  for (const [why, answer] of answers) {
    const seen: RequestInit[] = []
    const warned: object[] = []
    const judge = openTokenJudge({
      now: Date.now,
      log: { warn: (details) => void warned.push(details) },
      fetch: async (_, init) => {
        seen.push(init)
        return answer()
      },
    })
    for (let asked = 0; asked < 3; asked++)
      await t.rejects(judge.judge(token(), remote()), { message: 'keys', why }, 'and why')
    t.match(warned, [{ url: 'https://id.example/keys', why }], 'the log hears of it once')
    t.match(seen, [{ redirect: 'error', signal: AbortSignal }])
  }
})

t.test('passwords wait for each other, and more than can wait are refused', async (t) => {
  const factors = openSecondFactors({ now: Date.now })
  const factor = passwordFactor()
  const claim = (password: string) =>
    factors.prove({ factor, device: 'dev-1', password: Buffer.from(password) })
  const proofs = await Promise.all(Array.from({ length: 400 }, (_, i) => claim(`guess ${i}`)))
  const faults = proofs.map((proof) => ('fault' in proof ? proof.fault : 'none'))
  t.ok(faults.includes('wrong') && faults.includes('busy'))
  t.notOk(faults.includes('none'))
  t.same(await claim(PASSWORD), { until: Number.POSITIVE_INFINITY })
})
