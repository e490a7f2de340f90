import { once } from 'node:events'
import { chmodSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { join } from 'node:path'
import { connect } from 'node:tls'
import t from 'tap'
import { readConfig } from '../../broker/config.ts'
import { LIMITS } from '../../broker/limits.ts'
import { failingBroker, startBrokerProcess } from '../support/broker-process.ts'
import { enrollDevice, startEnrollment } from '../support/enrollment.ts'
import { connectAs, invitedBroker, runBroker } from '../support/running-broker.ts'

t.test('every fault of the options is named at once', async (t) => {
  const argv = [
    '--port',
    '99999',
    '--host',
    'a b',
    '--listen',
    'localhost',
    '--max-staleness',
    'soon',
    '--log-level',
    'loud',
    '--durability',
    'some',
    '--limit',
    'queueMessages=30001',
    '--limit',
    'subscriptions=many',
    '--limit',
    'handshakeMs=1',
    '--limit',
    '__proto__=1',
  ]
  t.throws(() => readConfig(argv), {
    code: 'config_invalid',
    message:
      /--host.*"a b".*--listen.*--log-level.*--port.*99999.*--max-staleness.*soon.*--durability.*some.*queueMessages must be a number from 0 to 30000.*subscriptions must be a number.*not "many".*handshakeMs=1.*__proto__=1/,
  })
  t.throws(() => readConfig(['--websocket-port', '70000', '--websocket-origin', '*']), {
    message: /--websocket-origin must be like https.*"\*".*--websocket-port must be a number/,
  })
  t.throws(() => readConfig(['--websocket-origin', 'https://a.example']), {
    message: /needs --websocket-port/,
  })
  t.throws(() => readConfig(['--colour']), { code: 'config_invalid', message: /--colour/ })
  t.throws(() => readConfig(['--port-base', '0']), { code: 'config_invalid', message: /--port-base/ })
})

t.test('options have the defaults that the documentation names', async (t) => {
  t.match(readConfig([]), {
    port: 8883,
    listen: '127.0.0.1',
    hosts: ['localhost', '127.0.0.1'],
    maxStalenessMs: 86_400_000,
    durability: 'full',
    limits: LIMITS,
    invitation: null,
  })
  t.match(readConfig([]), { webSocket: null, isAlpnSpoken: false }, 'more doors only when they are asked for')
  const doors = ['--alpn', '--websocket-port', '0', '--websocket-origin', 'https://Console.example:8443']
  t.match(readConfig(doors), {
    webSocket: { port: 0, origins: ['https://console.example:8443'] },
    isAlpnSpoken: true,
  })
  t.match(readConfig(['--port-base', '9000', '--host', 'mqtt.example.net', '--max-staleness', '90m']), {
    port: 9883,
    hosts: ['mqtt.example.net', 'localhost', '127.0.0.1'],
    maxStalenessMs: 5_400_000,
  })
  t.equal(readConfig(['--port', '0']).port, 0)
  t.match(LIMITS, {
    ...{ subscriptions: 100, filterLevels: 10, inflightInbound: 20, inflightOutbound: 20 },
    ...{ queueMessages: 1_000, queueBytes: 1_048_576, retainedMessages: 100, retainedBytes: 1_048_576 },
    ...{ publishPerSecond: 50, publishBurst: 200 },
  })
  const changed = readConfig([
    '--durability',
    'kill',
    '--limit',
    'queueMessages=7',
    '--limit',
    'publishPerSecond=0',
  ])
  t.match(changed, { durability: 'kill', limits: { ...LIMITS, queueMessages: 7, publishPerSecond: 0 } })
})

t.test('a broker starts, stops at a signal, and says why when it cannot start', async (t) => {
  const service = await startEnrollment(t)
  const args = await invitedBroker(service, 'broker-1')
  const [, data = ''] = args
  const bare = ['--data', data, '--port', '0']

  t.test('without a certificate and without an invitation', async (t) => {
    const { status, line, message } = await failingBroker(bare)
    t.equal(status, 2)
    t.match(line, /there is no certificate in .*muster broker invite/)
    t.match(message, { type: 'failed', code: 'config_invalid' }, 'its supervisor hears the same')
  })

  t.test('with an invitation, and with a directory that is in use', async (t) => {
    const broker = await startBrokerProcess(t, args)
    t.equal((await service.admin.listBrokers())[0]?.id, 'broker-1')
    await t.rejects(runBroker(t, bare), { code: 'directory_in_use' })
    t.match(await failingBroker(bare), {
      status: 5,
      line: /another process holds it; fix: stop the other broker, or take another directory with --data/,
    })
    t.equal(await broker.stop(), 0)
  })

  t.test('with a file that is no invitation, or one that is spent', async (t) => {
    const used = await invitedBroker(service, 'broker-2')
    const [, directory = '', , file = ''] = used
    const invitation = readFileSync(file)
    writeFileSync(file, '{}')
    await t.rejects(runBroker(t, used), { code: 'config_invalid', message: /muster broker invite --json/ })
    writeFileSync(file, invitation)
    await (await runBroker(t, used)).stop()
    rmSync(join(directory, 'broker'), { recursive: true })
    await t.rejects(runBroker(t, used), { code: 'token_spent' })
  })

  t.test('with another host: the certificate is renewed, and no connection is lost by it', async (t) => {
    const broker = await runBroker(t, [...bare, '--host', 'mqtt.example.net'])
    const lamp = await connectAs(service, broker, await enrollDevice(service, { id: 'lamp' }))
    await broker.says('certificate renewed')
    const socket = connect({
      host: '127.0.0.1',
      port: broker.port,
      servername: 'localhost',
      ca: service.root,
    })
    await once(socket, 'secureConnect')
    t.match(socket.getPeerX509Certificate()?.subjectAltName, /DNS:mqtt\.example\.net/)
    socket.destroy()
    t.ok(lamp.connected)
    await enrollDevice(service, { id: 'door' }).then((door) => connectAs(service, broker, door))
    t.match(await service.admin.listBrokers(), [{ id: 'broker-1', state: 'up' }], 'the stream is open again')
    await broker.stop()
  })

  t.test('with a port that is taken', async (t) => {
    const holder = createServer()
    await new Promise<void>((resolve) => holder.listen(0, '127.0.0.1', resolve))
    const { port } = holder.address() as AddressInfo // listening on TCP
    await t.rejects(runBroker(t, ['--data', data, '--port', String(port)]), { code: 'port_taken' })
    await new Promise((resolve) => holder.close(resolve))
  })

  t.test('with a key that others can read, or a damaged replica', async (t) => {
    const key = join(data, 'broker', 'broker.key')
    chmodSync(key, 0o644)
    await t.rejects(runBroker(t, bare), {
      code: 'key_file_insecure',
      message: /its mode is 0644; fix: chmod 600/,
    })
    chmodSync(key, 0o600)
    const path = join(data, 'broker', 'broker.db')
    writeFileSync(path, Buffer.alloc(readFileSync(path).length, 0x55))
    await t.rejects(runBroker(t, bare), {
      code: 'directory_unusable',
      message: /is damaged.*fix: rm .*broker\.db/,
    })
    for (const suffix of ['', '-wal', '-shm']) rmSync(path + suffix, { force: true })
    const sessions = join(data, 'broker', 'sessions.db')
    writeFileSync(sessions, Buffer.alloc(8_192, 0x55))
    await t.rejects(runBroker(t, bare), {
      code: 'directory_unusable',
      message: /sessions.*damaged.*rm .*sessions\.db/,
    })
    for (const suffix of ['', '-wal', '-shm']) rmSync(sessions + suffix, { force: true })
    t.ok(
      (await runBroker(t, bare)).replica.cursor(),
      'as the messages say, and as a directory of before there were sessions',
    )
  })
})
